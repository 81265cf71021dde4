"""What is asked for and what is answered, as plain values. Pure."""
