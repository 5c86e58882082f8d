"""From prepared sets to training batches: mixture, order, views, batches, readers."""
