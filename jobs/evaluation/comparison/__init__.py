"""Two evaluations on the same questions: differences with intervals, and what one has right and the other wrong."""
