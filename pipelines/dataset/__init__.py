"""The prepared set itself: schema, manifest, index, rows, rejects."""
