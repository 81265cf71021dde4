"""Memory of keys, values and features, and who holds which blocks of it."""
