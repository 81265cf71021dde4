"""What a drafter of its own is worth to a GPU: engines in one process, without weights or REST."""
