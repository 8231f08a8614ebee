"""Training: one update, one loop, one run folder for all families."""
