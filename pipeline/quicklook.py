"""A small picture of a map for people and catalogues: its classes in their colours, transparent where nothing is mapped."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from mibf.bundle import ClassName
from pipeline import storage
from pipeline.strangers import open_published

#: Its longest side in pixels at most.
SIDE = 1024


def quicklook_shape(shape_yx: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns of the picture of a raster; one that is small enough is not enlarged.

    >>> quicklook_shape((4096, 1000)), quicklook_shape((30, 20)), quicklook_shape((1, 9000))
    ((1024, 250), (30, 20), (1, 1024))
    """
    shrink = max(1.0, max(shape_yx) / SIDE)
    rows, columns = (max(1, math.floor(side / shrink + 0.5)) for side in shape_yx)
    return rows, columns


def quicklook(url: str, classes: Sequence[ClassName]) -> bytes:
    """The picture of the class raster at a URL, as a PNG of a palette.

    It is read decimated, from the raster's overviews where it has them: memory does not grow with the map. What is no
    class's id is transparent.
    """
    palette = dict.fromkeys(range(256), (0, 0, 0, 0)) | {c.id: (*c.rgb, 255) for c in classes}
    storage.set_gdal_up()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture lies nowhere, and some scenes
        with open_published(url) as dataset:
            rows, columns = quicklook_shape(dataset.shape)
            ids = dataset.read(1, out_shape=(rows, columns))
        with MemoryFile() as file:
            with file.open(driver="PNG", height=rows, width=columns, count=1, dtype="uint8", zlevel=9) as picture:
                picture.write(ids.astype(np.uint8), 1)
                picture.write_colormap(1, palette)
            return bytes(file.read())
