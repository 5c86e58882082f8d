"""One training stage: driver, workers, optimiser, checkpoints, metrics."""
