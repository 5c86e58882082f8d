"""Two systems on the same questions: differences of metrics with intervals from resampled images."""
