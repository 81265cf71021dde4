"""Training conversations that the target writes itself."""
