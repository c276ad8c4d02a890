"""Measurements of many scenes, many runs and jobs of a cluster."""
