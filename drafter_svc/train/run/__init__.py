"""A training run: data in order, updates, checkpoints."""
