"""`python -m loadtests.bench`: speculation on and off, beside other engines."""
