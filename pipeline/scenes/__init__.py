"""Scenes as declared: sources, labels and splits on one reference grid."""
