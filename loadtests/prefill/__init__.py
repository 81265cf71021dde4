"""`python -m loadtests.prefill`: time to the first token of long prompts."""
