"""What writing a store reads, by shard: items and bytes, from headers alone, for the progress of long reads.

Bytes are those of the files' pixels as decoded, by the boxes around the files on the grid. Of items of one day that overlap,
fewer may be read: those that come later are read only where the first ones have no data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from pipeline.grid import Window
from pipeline.rasters.raster import AlignedFile
from pipeline.store.build import PreparedScene


@dataclass(frozen=True)
class Reading:
    """A number of shards, what is read for them, and how often an item or file is opened for that, once a shard."""

    shards: int = 0
    items: int = 0
    bytes: int = 0

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.shards + other.shards, self.items + other.items, self.bytes + other.bytes)

    def __sub__(self, other: Reading) -> Reading:
        return Reading(self.shards - other.shards, self.items - other.items, self.bytes - other.bytes)


def reading(scene: PreparedScene) -> dict[Window, Reading]:
    """Return what each shard of a scene reads."""
    shards = scene.shards
    places = np.array([[w.y, w.x, w.y + w.height, w.x + w.width] for w in shards], np.float64)
    items, size = np.zeros(len(shards), np.int64), np.zeros(len(shards))
    for source in scene.sources:
        scaled = places * source.scale
        for layer in source.layers:
            for part in layer:
                share = _share(part, source.grid, scaled)
                size += share * _bytes(part)
                items += (share > 0) & (layer is source.layers[0])
                if part.mask is not None and layer is source.layers[0]:
                    size += share * _bytes(part.mask)
        if source.mask is not None:
            size += _share(source.mask, source.grid, scaled) * _bytes(source.mask)
    read = set(scene.shards_read)
    return {
        shard: Reading(1, int(count), round(own)) if shard in read else Reading(1)
        for shard, count, own in zip(shards, items.tolist(), size.tolist(), strict=True)
    }


def _bytes(part: AlignedFile) -> int:
    rows, columns = part.header.grid.shape
    return int(rows * columns * sum(np.dtype(dtype).itemsize for dtype in part.header.dtypes))


def _share(part: AlignedFile, grid: GeoBox, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of a file's box that is in each place (top, left, bottom, right) on a grid, without turns of the Earth."""
    top, left, bottom, right = _box(part, grid)
    height = np.minimum(bottom, places[:, 2]) - np.maximum(top, places[:, 0])
    width = np.minimum(right, places[:, 3]) - np.maximum(left, places[:, 1])
    return np.asarray(np.maximum(height, 0) * np.maximum(width, 0) / ((bottom - top) * (right - left)))


def _box(part: AlignedFile, grid: GeoBox) -> tuple[float, float, float, float]:
    """The box of a file on a grid, in pixels: top, left, bottom, right."""
    own, alignment = part.header.grid, part.alignment
    rows, columns = own.shape
    if alignment.kind == "exact":
        times = alignment.coarser
        top, left = -alignment.row * times, -alignment.column * times
        return top, left, top + rows * times, left + columns * times
    outline = own.extent if own.crs == grid.crs or own.crs is None else own.extent.to_crs(grid.crs)
    x, y = ~grid.affine * np.array(outline.boundary.coords, np.float64).T
    return float(y.min()), float(x.min()), float(y.max()), float(x.max())
