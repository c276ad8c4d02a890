"""Class maps in temporary files, read and written in windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from pipeline.geotiff.cog import rasterio_window
from pipeline.grid import Window
from pipeline.polygons import NODATA

#: Reads the class ids of a window, which lies on the grid.
Read = Callable[[Window], NDArray[np.uint8]]
#: Writes the class ids of a window.
Write = Callable[[Window, NDArray[np.uint8]], None]


def read_padded(read: Read, window: Window, margin: int, shape_yx: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a window with a margin on every side; there are no data beyond the grid."""
    rows, columns = shape_yx
    y, x = max(window.y - margin, 0), max(window.x - margin, 0)
    bottom, right = min(window.y + window.height + margin, rows), min(window.x + window.width + margin, columns)
    found = np.full((window.height + 2 * margin, window.width + 2 * margin), NODATA)
    top, left = y - window.y + margin, x - window.x + margin
    found[top : top + bottom - y, left : left + right - x] = read(Window(y, x, bottom - y, right - x))
    return found


def create(path: Path, shape_yx: tuple[int, int]) -> Write:
    """Create a map without data in a file; return the function that writes a window.

    The file is opened for each window: GDAL keeps the blocks of open files in memory.
    """
    rows, columns = shape_yx
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "dtype": "uint8", "count": 1}
    options = {"compress": "DEFLATE", "zlevel": 1, "bigtiff": "IF_SAFER", "sparse_ok": True, "nodata": int(NODATA)}
    with rasterio.open(path, "w", height=rows, width=columns, **profile, **options):
        pass

    def write(window: Window, classes: NDArray[np.uint8]) -> None:
        with rasterio.open(path, "r+") as dataset:
            dataset.write(classes, 1, window=rasterio_window(window))

    return write


def reader(path: Path) -> Read:
    """Return the function that reads a window of a map that was written; the file is opened for each window."""

    def read(window: Window) -> NDArray[np.uint8]:
        with rasterio.open(path) as dataset:
            return np.asarray(dataset.read(1, window=rasterio_window(window)))

    return read
