"""A target proves, as it is loaded, that it serves what its own forward gives."""
