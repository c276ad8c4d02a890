"""Benchmarks for users: rates measured in one run, as ratios to a named baseline."""
