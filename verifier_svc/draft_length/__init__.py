"""How many tokens to draft. Pure."""
