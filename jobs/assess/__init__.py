"""Assess the map of a run: draw a probability sample of it, and estimate accuracy and area from the labels."""
