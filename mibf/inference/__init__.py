"""Exact dense inference on entire tiles."""
