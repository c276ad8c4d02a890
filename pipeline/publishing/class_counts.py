"""Count the pixels of each class of a map, from its published files. Counts are not estimates of areas on the ground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mibf.bundle.classes import ClassName
from pipeline.geotiff.cog import rasterio_window
from pipeline.grid import Window, windows
from pipeline.io import gdal
from pipeline.io.retry import call_with_retry
from pipeline.parallel.executor import Executor
from pipeline.rasters.untrusted import open_published

#: Side of the windows that are counted at a time, in pixels.
SIDE = 4096


def count_classes(files: Sequence[tuple[str, Window]], classes: Sequence[ClassName], executor: Executor) -> dict[str, int]:
    """Count the pixels of each class in the files of a class raster; keys are class ids as text, as JSON has them.

    Args:
        files: URLs of the raster's files, and the part of the raster that each covers.
        classes: the classes to count.
        executor: counts windows.
    """
    tasks = [(url, part) for url, window in files for part in windows((window.height, window.width), SIDE)]
    total = np.zeros(256, np.int64)

    def add(counts: NDArray[np.int64]) -> None:
        total[:] += counts

    executor.each(_count, None, tasks, add)
    return {str(c.id): int(total[c.id]) for c in classes}


def _count(_shared: None, task: tuple[str, Window]) -> NDArray[np.int64]:
    gdal.configure_gdal()
    url, window = task

    def read() -> NDArray[np.int64]:
        with open_published(url) as dataset:
            return np.bincount(dataset.read(1, window=rasterio_window(window)).ravel(), minlength=256)

    return call_with_retry(url, read)
