"""The one-command stack: every service of Holdcourse on one machine, as separate processes."""
