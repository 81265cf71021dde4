"""One target split over several GPUs."""
