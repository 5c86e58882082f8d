"""Pictures for people: objects, heat maps, text."""
