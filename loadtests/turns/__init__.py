"""`python -m loadtests.turns`: what a second turn gains from the first."""
