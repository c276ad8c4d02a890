"""Scenes of a configuration as rows of a table."""
