"""Training text as documents of tokens."""
