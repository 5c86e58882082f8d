"""From raw annotations to a prepared set: plan, rows, shards, and what makes the set whole."""
