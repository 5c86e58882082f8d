"""One writer for each format that prepared sets are given back in."""
