"""The engine thread: gather messages, run them as one batch, answer."""
