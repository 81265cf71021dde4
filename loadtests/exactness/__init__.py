"""`python -m loadtests.exactness`: served text equals that of `generate`."""
