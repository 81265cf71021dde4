"""Whether everything that only a GPU runs works on this one, and how fast: one command."""
