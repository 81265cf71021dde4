"""Other engines, and arms that take turns."""
