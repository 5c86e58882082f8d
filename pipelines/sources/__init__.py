"""One reader for each format of raw annotations."""
