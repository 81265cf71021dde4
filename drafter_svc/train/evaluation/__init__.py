"""How well a drafter predicts its target, without serving it."""
