"""Benchmarks that users can run: rates of one run, as ratios against a baseline that is named."""
