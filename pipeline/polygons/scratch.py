"""Class maps in temporary files, read and written in windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from pipeline.geotiff.cog import rasterio_window
from pipeline.grid import Window
from pipeline.polygons import NODATA

#: Reads the class ids of a window, which lies on the grid.
Read = Callable[[Window], NDArray[np.uint8]]


def read_padded(read: Read, window: Window, margin: int, shape_yx: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a window with a margin on every side; there are no data beyond the grid."""
    rows, columns = shape_yx
    y, x = max(window.y - margin, 0), max(window.x - margin, 0)
    bottom, right = min(window.y + window.height + margin, rows), min(window.x + window.width + margin, columns)
    found = np.full((window.height + 2 * margin, window.width + 2 * margin), NODATA)
    top, left = y - window.y + margin, x - window.x + margin
    found[top : top + bottom - y, left : left + right - x] = read(Window(y, x, bottom - y, right - x))
    return found


@contextmanager
def writing(path: Path, shape_yx: tuple[int, int]) -> Iterator[Callable[[Window, NDArray[np.uint8]], None]]:
    """Create a map in a file; yields the function that writes a window."""
    rows, columns = shape_yx
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "dtype": "uint8", "count": 1}
    options = {"compress": "DEFLATE", "zlevel": 1, "bigtiff": "IF_SAFER", "sparse_ok": True, "nodata": int(NODATA)}
    with rasterio.open(path, "w", height=rows, width=columns, **profile, **options) as dataset:
        yield lambda window, classes: dataset.write(classes, 1, window=rasterio_window(window))


@contextmanager
def reading(path: Path) -> Iterator[Read]:
    """Open a map that was written; yields the function that reads a window."""
    with rasterio.open(path) as dataset:
        yield lambda window: np.asarray(dataset.read(1, window=rasterio_window(window)))
