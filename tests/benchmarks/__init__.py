"""Benchmarks: ratios within one run, since the machines they run on are shared."""
