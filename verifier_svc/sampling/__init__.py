"""From logits to tokens: exact sampling, and verification of drafts."""
