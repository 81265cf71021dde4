"""Which rows run in the next step. Pure."""
