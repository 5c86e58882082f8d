"""From raw annotations to shards, and from shards to batches."""
