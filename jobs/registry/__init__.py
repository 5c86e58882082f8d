"""Which models there are: registration, promotion, comparison, exports."""
