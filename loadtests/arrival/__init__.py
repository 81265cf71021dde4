"""`python -m loadtests.arrival`: what streams feel of a long prompt that arrives."""
