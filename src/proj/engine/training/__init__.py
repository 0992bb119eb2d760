"""Training runs: checks before the first epoch, training, resuming."""
