"""Training of EAGLE-3.1 drafters; never imported by serving."""
