"""Things that tests of several services share."""
