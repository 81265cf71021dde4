"""Entries and chains as they are served."""
