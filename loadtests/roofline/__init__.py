"""`python -m loadtests.roofline`: a round's time beside what the memory allows."""
