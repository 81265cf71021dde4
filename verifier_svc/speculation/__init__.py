"""Drafts: what is sent to a drafter, and what comes back."""
