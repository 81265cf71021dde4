"""The engine thread: schedule, run, commit."""
