"""The decoder over packed rows: its attention, and the backends that run it."""
