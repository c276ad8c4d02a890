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


def reflected(start: int, stop: int, size: int) -> NDArray[np.int64]:
    """Indices start..stop of an axis of `size` pixels, those beyond its ends mirrored at the end pixels.

    The paper pads a scene by reflection; here it holds at any distance beyond the edge.

    >>> reflected(-2, 6, 4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    if size == 1:
        return np.zeros(stop - start, np.int64)
    period = 2 * (size - 1)
    folded = np.arange(start, stop) % period
    return np.minimum(folded, period - folded)


def grid_to_json(grid: GeoBox) -> dict[str, Any]:
    """A grid as GeoZarr `proj:` and `spatial:` attributes."""
    crs = (
        {}
        if grid.crs is None
        else {"proj:code": grid.crs.to_epsg() and f"EPSG:{grid.crs.to_epsg()}", "proj:wkt2": grid.crs.to_wkt()}
    )
    return crs | {
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(grid.affine)[:6],
        "spatial:shape": list(grid.shape),
    }


def grid_from_json(value: dict[str, Any]) -> GeoBox:
    """The grid that `grid_to_json` wrote."""
    rows, columns = value["spatial:shape"]
    return GeoBox((rows, columns), Affine(*value["spatial:transform"]), value.get("proj:wkt2"))


def same_grid(one: GeoBox, other: GeoBox) -> bool:
    """Whether two grids agree in shape, CRS and, to a thousandth of a pixel, in place."""
    if one.shape != other.shape or one.crs != other.crs:
        return False
    rows, columns = one.shape
    to_other = ~other.affine * one.affine
    return all(
        abs(a - b) < 1e-3 for corner in ((0, 0), (columns, rows)) for a, b in zip(to_other * corner, corner, strict=True)
    )
