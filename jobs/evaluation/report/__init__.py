"""What a scoring leaves behind for people: scores, pictures, a report that says why a model fails, labels to review."""
