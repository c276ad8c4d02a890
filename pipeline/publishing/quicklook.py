"""Quicklook of a map: a small image of its classes in their colours, transparent where nothing is mapped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rasterio.io import MemoryFile

from mibf.bundle.classes import ClassName
from pipeline.geotiff.cog import color_table
from pipeline.grid import Window
from pipeline.io import gdal
from pipeline.rasters.untrusted import open_published

#: Maximum length of the longer side, in pixels.
SIDE = 1024


def quicklook_shape(shape_yx: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a raster's quicklook; small rasters are not enlarged.

    >>> quicklook_shape((4096, 1000)), quicklook_shape((30, 20)), quicklook_shape((1, 9000))
    ((1024, 250), (30, 20), (1, 1024))
    """
    shrink = max(1.0, max(shape_yx) / SIDE)
    rows, columns = (max(1, math.floor(side / shrink + 0.5)) for side in shape_yx)
    return rows, columns


def quicklook(files: Sequence[tuple[str, Window]], shape_yx: tuple[int, int], classes: Sequence[ClassName]) -> bytes:
    """Render a class raster as a palette PNG.

    Files are read decimated, from their overviews, so memory does not grow with the map. Values that are not class ids are
    transparent.

    Args:
        files: URLs of the raster's files, and the part of the raster that each covers.
        shape_yx: rows and columns of the raster.
        classes: colours of the class ids.
    """
    gdal.configure_gdal()
    rows, columns = quicklook_shape(shape_yx)
    ids = np.zeros((rows, columns), np.uint8)
    for url, window in files:
        y, x = (
            slice(*(_first_pixel(edge, size, count) for edge in (start, start + extent)))
            for start, extent, size, count in (
                (window.y, window.height, shape_yx[0], rows),
                (window.x, window.width, shape_yx[1], columns),
            )
        )
        if y.start < y.stop and x.start < x.stop:
            with open_published(url) as dataset:
                ids[y, x] = dataset.read(1, out_shape=(y.stop - y.start, x.stop - x.start))
    with MemoryFile() as file:
        with file.open(driver="PNG", height=rows, width=columns, count=1, dtype="uint8", zlevel=9) as picture:
            picture.write(ids, 1)
            picture.write_colormap(1, color_table(classes))
        return bytes(file.read())


def _first_pixel(edge: int, size: int, count: int) -> int:
    """The first of `count` pixels across `size` pixels whose centre is not before an edge."""
    return max(0, math.ceil(edge * count / size - 0.5))
