"""Fields of STAC items and collections that are built apart: how to draw a map, and who may use it."""
