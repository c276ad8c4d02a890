"""Grids and windows of the reference grid. odc-geo's GeoBox holds CRS, affine and shape.

Axis order is (y, x) throughout; names state it where two numbers occur together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

#: GeoZarr's conventions for a CRS and a grid, as groups and arrays register them (https://geozarr.org). Readers identify a
#: convention by its UUID.
CRS_CONVENTION = {
    "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/proj/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/proj/blob/v0.1/README.md",
    "name": "proj:",
    "description": "Coordinate reference system information for geospatial data",
}
GRID_CONVENTION = {
    "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/spatial/blob/v0.1/README.md",
    "name": "spatial:",
    "description": "Spatial coordinate information",
}


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of the reference grid, in pixels: rows [y, y + height), columns [x, x + width)."""

    y: int
    x: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices for indexing an array (..., y, x)."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


def windows(shape_yx: tuple[int, int], side: int) -> list[Window]:
    """Squares of `side` pixels, anchored at the grid's origin, that cover the grid row by row; cropped at its far edges."""
    rows, columns = shape_yx
    return [
        Window(y, x, min(side, rows - y), min(side, columns - x))
        for y in range(0, rows, side)
        for x in range(0, columns, side)
    ]


def reflected(start: int, stop: int, size: int, *, scale: int = 1) -> NDArray[np.int64]:
    """Indices start..stop of an axis of `size` pixels, those beyond its ends mirrored at the end pixels.

    The paper pads a scene by reflection; this works at any distance beyond the edge. With `scale`, the indices are those of
    a finer source with `scale` pixels per grid pixel. The mirror stays the centre of the grid's end pixel, which keeps
    sources co-registered.

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
    """A grid's CRS as `proj:` attributes, which GeoZarr and STAC share; empty if it has no CRS."""
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


def geozarr_attributes(grid: GeoBox, *, dimensions: tuple[str, str] = ("y", "x")) -> dict[str, Any]:
    """A grid as attributes of a Zarr group or array that registers GeoZarr's conventions; `grid_from_json` reads them.

    A group's apply to its own arrays, but not to those of its subgroups. `dimensions` are the names of the rows' and the
    columns' dimension.
    """
    crs = {name: value for name, value in crs_to_json(grid).items() if value}  # the code may be null in STAC, but not here
    conventions = [CRS_CONVENTION, GRID_CONVENTION] if crs else [GRID_CONVENTION]
    found = grid_to_json(grid) | {"spatial:dimensions": list(dimensions), "spatial:bbox": list(grid.boundingbox)}
    return {"zarr_conventions": conventions} | {name: value for name, value in found.items() if value is not None}


def grid_from_json(value: dict[str, Any]) -> GeoBox:
    """The grid from the attributes of `grid_to_json`."""
    rows, columns = value["spatial:shape"]
    return GeoBox((rows, columns), Affine(*value["spatial:transform"]), value.get("proj:wkt2"))


def finer(grid: GeoBox, scale: int) -> GeoBox:
    """A grid with scale x scale pixels in each pixel of the given grid."""
    return GeoBox((grid.shape[0] * scale, grid.shape[1] * scale), grid.affine * Affine.scale(1 / scale), grid.crs)


def padded(grid: GeoBox, margin: int) -> GeoBox:
    """A grid with this many pixels more on every side."""
    return grid if margin == 0 else grid.pad(margin)


@dataclass(frozen=True, order=True)
class Tile:
    """A tile's identity: equal across retries and machines."""

    scene: str
    window: Window

    @property
    def key(self) -> str:
        """The tile's name in messages and records."""
        return f"{self.scene}/y{self.window.y}_x{self.window.x}"


def tile_grid(scene: str, shape_yx: tuple[int, int], side: int) -> list[Tile]:
    """The tiles of a scene, row by row."""
    return [Tile(scene, window) for window in windows(shape_yx, side)]
