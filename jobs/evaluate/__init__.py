"""The evaluate stage, ablations and seed summaries."""
