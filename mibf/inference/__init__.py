"""Exact dense inference on whole tiles."""
