"""From files to a model: what can be served, and whether its weights are whole."""
