"""What is made from published maps: polygons, changes between two maps."""
