"""Grids and windows: which pixel of the reference grid is where. odc-geo's GeoBox carries CRS, affine and shape.

Axis order is (y, x) throughout; names say so where two numbers meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of the reference grid, in pixels: rows [y, y + height), columns [x, x + width)."""

    y: int
    x: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns to index an array (..., y, x) with."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


def windows(shape_yx: tuple[int, int], side: int) -> list[Window]:
    """Squares of `side` pixels anchored at the grid's origin that cover it, row by row; cut at its far edges."""
    rows, columns = shape_yx
    return [
        Window(y, x, min(side, rows - y), min(side, columns - x))
        for y in range(0, rows, side)
        for x in range(0, columns, side)
    ]


def reflected(start: int, stop: int, size: int, *, scale: int = 1) -> NDArray[np.int64]:
    """Indices start..stop of an axis of `size` pixels, those beyond its ends mirrored at the end pixels.

    The paper pads a scene by reflection; here it holds at any distance beyond the edge. With `scale` pixels of a finer
    source in each, theirs: the mirror is the same, the middle of the grid's end pixel, so that sources stay in register.

    >>> reflected(-2, 6, 4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    >>> reflected(-1, 2, 3, scale=2).tolist()
    [3, 2, 0, 1, 2, 3]
    """
    indices = np.arange(start, stop)
    if size == 1:
        folded, back = np.zeros(stop - start, np.int64), indices % 2 != 0
    else:
        period = 2 * (size - 1)
        folded = indices % period
        back = folded >= size
        folded = np.minimum(folded, period - folded)
    if scale == 1:
        return folded
    within = np.arange(scale)
    fine = folded[:, None] * scale + np.where(back[:, None], within[::-1], within)
    return np.asarray(fine.ravel())


def crs_to_json(grid: GeoBox) -> dict[str, Any]:
    """A grid's CRS as `proj:` attributes, which GeoZarr and STAC share; none where it has no CRS."""
    if grid.crs is None:
        return {}
    return {"proj:code": grid.crs.to_epsg() and f"EPSG:{grid.crs.to_epsg()}", "proj:wkt2": grid.crs.to_wkt()}


def grid_to_json(grid: GeoBox) -> dict[str, Any]:
    """A grid as GeoZarr `proj:` and `spatial:` attributes."""
    return crs_to_json(grid) | {
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(grid.affine)[:6],
        "spatial:shape": list(grid.shape),
    }


def grid_from_json(value: dict[str, Any]) -> GeoBox:
    """The grid that `grid_to_json` wrote."""
    rows, columns = value["spatial:shape"]
    return GeoBox((rows, columns), Affine(*value["spatial:transform"]), value.get("proj:wkt2"))
