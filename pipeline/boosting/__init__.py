"""Gradient boosted trees on features of single pixels: features, training, scores."""
