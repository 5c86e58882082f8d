"""Images that are in two sets: what they are recognised by, comparison, exclusion."""
