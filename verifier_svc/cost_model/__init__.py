"""How long steps and drafts take, learned from those that ran. Pure."""
