"""Polygons of class maps: generalization by stated rules, regions, outlines and vector files, all in windows.

rasterio's `sieve` and `shapes` (GDAL) are not used for whole maps: they hold a raster, or every polygon, in memory. GDAL's
sieve also counts pixels only, and keeps small regions that have no large neighbour.
"""

from __future__ import annotations

import numpy as np

#: The id of pixels without a class, in class maps.
NODATA = np.uint8(255)
#: Side in pixels of the windows in which maps are read. It does not affect results.
WINDOW = 1024
