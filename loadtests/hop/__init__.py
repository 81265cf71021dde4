"""What it takes to carry features to a drafter in another process."""
