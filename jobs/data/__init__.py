"""The verbs that make and give back prepared sets."""
