"""Formats that prepared sets are written back to."""
