"""The endpoint under load: what the benchmarks of serving share."""
