"""States of documents, for training."""
