"""What is minimized: training-time test, its attention, losses and updates."""
