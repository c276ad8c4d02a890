"""Assess a published map by a probability sample: sampling design, selection, and design-based estimators."""
