"""Tiny models with random weights of all families that transformers knows, and what serves them."""
