"""Quicklook of a map: a small image of its classes in their colours, transparent where nothing is mapped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rasterio.io import MemoryFile

from mibf.bundle.classes import ClassName
from pipeline.io import gdal
from pipeline.publishing.cog import color_table
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


def quicklook(url: str, classes: Sequence[ClassName]) -> bytes:
    """Render the class raster at a URL as a palette PNG.

    The raster is read decimated, from its overviews if present, so memory does not grow with the map. Values that are not
    class ids are transparent.
    """
    gdal.configure_gdal()
    with open_published(url) as dataset:
        rows, columns = quicklook_shape(dataset.shape)
        ids = dataset.read(1, out_shape=(rows, columns))
    with MemoryFile() as file:
        with file.open(driver="PNG", height=rows, width=columns, count=1, dtype="uint8", zlevel=9) as picture:
            picture.write(ids.astype(np.uint8), 1)
            picture.write_colormap(1, color_table(classes))
        return bytes(file.read())
