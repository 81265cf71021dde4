"""Ways of running Holdcourse."""
