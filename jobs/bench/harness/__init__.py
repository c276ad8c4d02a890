"""Shared by the benchmarks: baselines, synthetic workspaces, timing and tables."""
