"""The frozen target, in this process or behind verifiers."""
