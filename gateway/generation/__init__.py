"""One request, its choices, and their failover."""
