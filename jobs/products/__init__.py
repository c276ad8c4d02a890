"""What is made from published maps: polygons."""
