"""Images of a source: the names that they go by, where they lie, and what they hold."""
