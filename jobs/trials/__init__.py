"""Trials: compare candidate models on train and validation pixels by cross-validation over spatial blocks."""
