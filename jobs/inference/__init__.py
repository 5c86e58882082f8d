"""The verbs that ask a model: predict, explain, serve."""
