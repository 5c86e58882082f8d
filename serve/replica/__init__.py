"""The engine's side: a Serve deployment around the model and its engine."""
