"""Short runs of several training arms over one target, compared."""
