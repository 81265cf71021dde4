"""The EAGLE-3.1 drafter as a module, and what it takes from its target."""
