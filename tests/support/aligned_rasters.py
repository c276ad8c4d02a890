"""Read rasters aligned with a grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox

from pipeline.grid import windows
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import header, open_raster
from pipeline.rasters.resample import align, read_aligned


def read_to_grid(path: Path, grid: GeoBox, *, side: int, resampling: str | None = "nearest") -> np.ndarray:
    """Read a raster on a grid, by windows of `side` pixels: (band, y, x), NaN where there is no data."""
    file = RasterFile(str(path))
    head = header(file)
    alignment = align(file, head, grid, resampling=resampling)
    values = np.full((head.bands, *grid.shape), np.nan)
    with open_raster(file) as raster:
        for window in windows(tuple(grid.shape), side):
            found, valid = read_aligned(raster, alignment, grid, window)
            values[:, *window.slices] = np.where(valid, found, np.nan)
    return values
