"""The verifiers, and where sessions are kept."""
