"""Readers of the formats that data comes in; what each gives is in ``pipelines.sources.base``."""
