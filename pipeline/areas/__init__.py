"""Areas: the polygons or the box that a scene is limited to, and the grids that follow from them."""
