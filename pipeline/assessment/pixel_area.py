"""Areas of a grid's pixels on the ellipsoid, in hectares.

- Geographic, with north up: exact areas of the rows' bands between two parallels, from the authalic formula.
- Geographic, rotated: the ellipsoid's area element at the pixel's centre.
- Projected: the pixel's area in the plane, over the areal scale of the projection, which is 1 everywhere where the
  projection preserves area. It is computed on a lattice of points and interpolated between them, for it varies slowly.
- Without a CRS, or with one that is not on the Earth: unknown.

Formulas: Snyder, "Map projections: a working manual" (USGS 1987), equations 3-11, 3-12 (authalic latitude) and 4-20, 4-21.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyproj
from numpy.typing import ArrayLike, NDArray
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError

from pipeline.grid import Window

Array = NDArray[np.float64]
#: Square metres in a hectare.
HECTARE = 10_000.0
#: Pixels between the points of the lattice along an axis, at most, and the least number of intervals across a window.
LATTICE, INTERVALS = 64, 4
#: Deviations of the areal scale from 1 that are rounding: the projection preserves area.
ROUNDING = 1e-9


@dataclass(frozen=True)
class PixelAreas:
    """The areas of the pixels of a grid."""

    grid: GeoBox

    @cached_property
    def _crs(self) -> pyproj.CRS | None:
        if self.grid.crs is None:
            return None
        crs = pyproj.CRS.from_wkt(self.grid.crs.to_wkt())
        horizontal = crs.sub_crs_list[0] if crs.is_compound else crs
        return horizontal if horizontal.is_geographic or horizontal.is_projected else None

    @cached_property
    def known(self) -> bool:
        """Whether areas are known: the grid is on the Earth, and its projection can be inverted there."""
        if self._crs is None or self._crs.ellipsoid is None:
            return False
        rows, columns = self.grid.shape
        corners = self.of([0, 0, rows - 1, rows - 1], [0, columns - 1, 0, columns - 1])
        return bool(np.isfinite(corners).all() and (corners > 0).all())

    @cached_property
    def equal(self) -> bool:
        """Whether all pixels are of equal area: the projection preserves it."""
        if self._crs is None or self._crs.is_geographic:
            return False
        rows, columns = self.grid.shape
        at = np.meshgrid(np.linspace(0, rows - 1, 9), np.linspace(0, columns - 1, 9), indexing="ij")
        scale = self._areal_scale(at[0].ravel(), at[1].ravel())
        return bool((abs(scale - 1) < ROUNDING).all())

    def of(self, rows: ArrayLike, columns: ArrayLike) -> Array:
        """Return the areas of single pixels (n,) in hectares."""
        y, x = np.asarray(rows, np.float64), np.asarray(columns, np.float64)
        assert self._crs is not None
        if not self._crs.is_geographic:
            return np.asarray(self._plane / self._areal_scale(y, x) / HECTARE)
        if self._is_north_up:
            return self._bands(y)
        _, _, _, d, e, f = tuple(self.grid.affine)[:6]
        latitude = d * (x + 0.5) + e * (y + 0.5) + f
        square = abs(self.grid.affine.determinant) * self._radians**2
        return np.asarray(self._element(latitude * self._radians) * square / HECTARE)

    def window(self, window: Window) -> Array:
        """Return the areas of a window's pixels in hectares: (height, width), or what broadcasts to it.

        The areas of a large projected window are interpolated linearly on a lattice.
        """
        rows = np.arange(window.y, window.y + window.height)
        assert self._crs is not None
        if self._crs.is_geographic and self._is_north_up:
            return self._bands(rows.astype(np.float64))[:, None]
        if self.equal:
            return np.full((1, 1), self._plane / HECTARE)
        y, x = (_lattice(start, size) for start, size in ((window.y, window.height), (window.x, window.width)))
        at = np.meshgrid(y, x, indexing="ij")
        known = self.of(at[0].ravel(), at[1].ravel()).reshape(at[0].shape)
        across = np.arange(window.x, window.x + window.width)
        along = np.array([np.interp(across, x, line) for line in known])  # (lattice, width)
        position = np.interp(rows, y, np.arange(len(y)))
        low = np.minimum(position.astype(np.int64), max(len(y) - 2, 0))
        share = (position - low)[:, None]
        return np.asarray(along[low] * (1 - share) + along[np.minimum(low + 1, len(y) - 1)] * share)

    @property
    def _is_north_up(self) -> bool:
        return bool(self.grid.affine.d == 0 and self.grid.affine.b == 0)

    @property
    def _is_web_mercator(self) -> bool:
        """Whether the projection takes latitudes on the ellipsoid as those on a sphere, of which PROJ computes the scale."""
        assert self._crs is not None
        operation = self._crs.coordinate_operation
        return operation is not None and operation.method_name == "Popular Visualisation Pseudo Mercator"

    @property
    def _radians(self) -> float:
        """Radians in a unit of a geographic CRS."""
        assert self._crs is not None
        return float(self._crs.axis_info[0].unit_conversion_factor)

    @property
    def _plane(self) -> float:
        """Square metres of a pixel in the plane of the projection."""
        assert self._crs is not None
        return float(abs(self.grid.affine.determinant) * self._crs.axis_info[0].unit_conversion_factor ** 2)

    @property
    def _ellipsoid(self) -> tuple[float, float]:
        """Semi-major axis and squared eccentricity."""
        assert self._crs is not None
        ellipsoid = self._crs.ellipsoid
        assert ellipsoid is not None
        return ellipsoid.semi_major_metre, 1 - (ellipsoid.semi_minor_metre / ellipsoid.semi_major_metre) ** 2

    def _bands(self, rows: Array) -> Array:
        """Areas of the pixels of rows of a geographic grid with north up."""
        step, top = self.grid.affine.e * self._radians, self.grid.affine.f * self._radians
        edges = [np.clip(top + (rows + offset) * step, -np.pi / 2, np.pi / 2) for offset in (0, 1)]
        width = abs(self.grid.affine.a) * self._radians
        return np.asarray(abs(self._authalic(edges[1]) - self._authalic(edges[0])) * width / HECTARE)

    def _authalic(self, latitude: Array) -> Array:
        """Area between the equator and a parallel, per radian of longitude, in square metres (Snyder 3-12)."""
        major, squared = self._ellipsoid
        sine, e = np.sin(latitude), np.sqrt(squared)
        if e == 0:
            return np.asarray(major**2 * sine)
        return np.asarray(major**2 * (1 - squared) / 2 * (sine / (1 - squared * sine**2) + np.arctanh(e * sine) / e))

    def _element(self, latitude: Array) -> Array:
        """The ellipsoid's area element per squared radian: radii of curvature times the parallel's (Snyder 4-20, 4-21)."""
        major, squared = self._ellipsoid
        return np.asarray(major**2 * (1 - squared) * np.cos(latitude) / (1 - squared * np.sin(latitude) ** 2) ** 2)

    def _areal_scale(self, rows: Array, columns: Array) -> Array:
        """The projection's areal scale at pixel centres; NaN where it is not defined."""
        a, b, c, d, e, f = tuple(self.grid.affine)[:6]
        x, y = a * (columns + 0.5) + b * (rows + 0.5) + c, d * (columns + 0.5) + e * (rows + 0.5) + f
        projection = pyproj.Proj(self._crs)
        try:
            longitude, latitude = projection(x, y, inverse=True)
            if self._is_web_mercator:
                radians = np.radians(latitude)
                scale = self._ellipsoid[0] ** 2 / (np.cos(radians) * self._element(radians))
            else:
                scale = projection.get_factors(longitude, latitude).areal_scale
        except ProjError:
            return np.full(rows.shape, np.nan)
        return np.where(np.isfinite(scale), scale, np.nan)


def _lattice(start: int, size: int) -> Array:
    """Positions of the lattice's points along an axis of a window, from its first to its last pixel."""
    intervals = max(INTERVALS, -(-size // LATTICE))
    return np.linspace(start, start + size - 1, intervals + 1) if size > 1 else np.array([float(start)])
