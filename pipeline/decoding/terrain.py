"""Slope and aspect of a surface of heights, from the eight neighbors of each pixel.

Horn, "Hill shading and the reflectance map", Proceedings of the IEEE 69, 1981: the rise along columns and rows is that of
the plane that fits the neighbors best, where those beside, above and below count twice. Pixel sizes and directions are those
on the ellipsoid, whatever the grid's CRS: a grid may be rotated, in degrees, or in a projection that stretches distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.decoding.expression import HALO, TERRAIN
from pipeline.grid import Window

#: Rows and columns of the neighbors, and their weights.
_NEIGHBORS = [(dy, dx, 2.0 if 0 in (dy, dx) else 1.0) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
#: Pixels between the nodes of the grid where pixels are measured; between them, measures are interpolated.
_STEP = 16
#: Rows that are computed at once, which limits memory.
_ROWS = 64


@dataclass(frozen=True)
class Terrain:
    """Where a window of a grid has data (y, x). The window may begin and end beyond the grid."""

    grid: GeoBox
    window: Window
    valid: NDArray[np.bool_]

    def compute(self, function: str, heights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute a function of `TERRAIN` from heights in meters (y, x).

        Slope is in degrees. Northness and eastness are components of the unit vector upright on the surface: the sine of
        slope times the cosine and sine of aspect (Amatulli et al., Scientific Data 5, 2018).

        A value depends on its pixel and the neighbors that have data. It is NaN where the pixel has none, or where its
        neighbors with data are fewer than two or on one line.
        """
        rows, columns = heights.shape
        there = np.pad(np.where(self.valid & np.isfinite(heights), heights, np.nan), HALO, constant_values=np.nan)
        found = np.empty((rows, columns))
        for top in range(0, rows, _ROWS):
            strip = Window(self.window.y + top, self.window.x, min(_ROWS, rows - top), columns)
            east, north = self._gradient(there[top : top + strip.height + 2 * HALO], strip)
            steepness = np.sqrt(east**2 + north**2)
            if function == "slope":
                own = np.degrees(np.arctan(steepness))
            else:
                own = -(north if function == "northness" else east) / np.sqrt(1 + steepness**2)
            found[top : top + strip.height] = own
        return found

    def _gradient(self, heights: NDArray[np.float64], strip: Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The rise per meter to the east and north (y, x), of heights with a halo."""
        x, y = _rises(heights)
        (east_x, east_y), (north_x, north_y) = ground_steps(self.grid, strip)
        area = east_x * north_y - east_y * north_x
        return (north_y * x - north_x * y) / area, (east_x * y - east_y * x) / area


def _rises(heights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rise per column and per row (y, x), of heights with a halo of one pixel that are NaN where there are none.

    The plane goes through the pixel's own height. Without missing neighbors this is Horn's formula.
    """
    rows, columns = (size - 2 * HALO for size in heights.shape)
    center = heights[HALO:-HALO, HALO:-HALO]
    x, y = np.zeros((2, rows, columns))
    xx, yy, xy = np.zeros((3, rows, columns))
    for dy, dx, weight in _NEIGHBORS:
        rise = heights[HALO + dy : HALO + dy + rows, HALO + dx : HALO + dx + columns] - center
        known = np.isfinite(rise)
        weights = weight * known
        rise = weights * np.where(known, rise, 0)
        x += dx * rise
        y += dy * rise
        xx += dx * dx * weights
        yy += dy * dy * weights
        xy += dx * dy * weights
    determinant = np.where(np.isfinite(center), xx * yy - xy * xy, 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # no plane: NaN
        return (yy * x - xy * y) / determinant, (xx * y - xy * x) / determinant


def ground_steps(grid: GeoBox, window: Window) -> NDArray[np.float64]:
    """Meters (2, 2, y, x) to the east and to the north, on the ellipsoid, of a step to the next column and the next row.

    They are measured at nodes of the grid and interpolated; beyond the grid they are those of its end.
    """
    rows, columns = grid.shape
    y, above, down = _nodes(window.y, window.height, rows)
    x, left, across = _nodes(window.x, window.width, columns)
    measured = _measure(grid, *np.meshgrid(x, y))
    upper, lower = measured[:, :, above], measured[:, :, above + 1]
    between = upper + down[:, None] * (lower - upper)  # (2, 2, y, nodes)
    first, second = between[..., left], between[..., left + 1]
    return np.asarray(first + across * (second - first))


def _nodes(start: int, length: int, size: int) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64]]:
    """Nodes of an axis around a window; and for each of its pixels the node before it and its way to the next, 0 to 1.

    Nodes are centers of pixels, at the same positions of the grid whatever the window.
    """
    pixels = np.clip(np.arange(start, start + length), 0, size - 1)
    first = pixels[0] // _STEP
    at = np.minimum(np.arange(first, pixels[-1] // _STEP + 2) * _STEP, size - 1)
    before = pixels // _STEP - first
    apart = at[before + 1] - at[before]
    return at + 0.5, before, (pixels - at[before]) / np.maximum(apart, 1)


def _measure(grid: GeoBox, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Meters (2, 2, y, x) to the east and to the north of a step to the next column and row, at positions in pixels."""
    geodetic = grid.crs.proj.geodetic_crs
    to_ellipsoid = grid.crs.transformer_to_crs(geodetic)
    degrees = np.degrees(geodetic.axis_info[0].unit_conversion_factor)  # which may be in grads
    # Half a pixel, so that no step leaves the grid, which may end at a pole.
    start, right, below = (
        [degrees * angle for angle in to_ellipsoid(*(grid.affine * (x + dx, y + dy)))]
        for dx, dy in ((0, 0), (0.5, 0), (0, 0.5))
    )
    steps = []
    for end in (right, below):
        azimuth, _, meters = geodetic.get_geod().inv(*start, *end)
        steps.append(2 * meters * np.array([np.sin(np.radians(azimuth)), np.cos(np.radians(azimuth))]))
    return np.stack(steps, axis=1)


def check_ground(source: str, grid: GeoBox) -> None:
    """Check that the pixels of a grid have a size on the ground.

    Raises:
        InputError: they have none.
    """
    if grid.crs is None or grid.crs.proj.geodetic_crs is None:
        has = "has no CRS" if grid.crs is None else f"is in a local CRS, {grid.crs.proj.name!r}"
        raise InputError(
            f"source {source!r}: {', '.join(TERRAIN)} in `derive` need pixel sizes in meters and directions, but the "
            f"reference grid {has}; assign its CRS to the file, for example with `rio edit-info --crs`, or give a raster of "
            "the slope."
        )
