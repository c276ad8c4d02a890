"""The area on the ellipsoid of the pixels of a grid, in whatever CRS.

Areas are whole numbers of a unit, so that their sums are exact: they do not depend on the order of the pixels.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pyproj
from numpy.typing import ArrayLike, NDArray
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError, ProjError

from mibf.errors import InputError
from pipeline.grid import Window

#: The area of the pixel in the middle of a grid in units; others differ from it by less than a factor of 2^16.
UNITS = 1 << 24
#: Distance in pixels of the points, anchored at the grid's origin, between which areas are interpolated.
STEP = 16
#: Square metres per hectare.
HECTARE = 10_000.0


class PixelArea:
    """The areas of the pixels of a grid.

    On a geographic grid that is not rotated, the area of a row's pixels is that of the zone between its parallels (Snyder
    1987, Map Projections: A Working Manual, eq. 3-12). On other grids it is the area in the CRS divided by the areal scale
    of the projection, at points `STEP` pixels apart, and interpolated linearly between them.

    Raises:
        InputError: the grid has no CRS, or one that does not refer to the Earth.
    """

    def __init__(self, grid: GeoBox) -> None:
        crs = None if grid.crs is None else pyproj.CRS.from_wkt(grid.crs.to_wkt())
        if crs is None or not (crs.is_geographic or crs.is_projected):
            raise InputError("areas need a grid with a CRS that refers to the Earth; this one has none, or a local one.")
        self._grid, self._crs = grid, crs
        assert crs.ellipsoid is not None
        self._axes = crs.ellipsoid.semi_major_metre, crs.ellipsoid.semi_minor_metre
        self._rows = crs.is_geographic and grid.affine.b == 0 and grid.affine.d == 0
        rows, columns = grid.shape
        middle = self._at(np.array([rows / 2]), np.array([columns / 2]))[0]
        if not (math.isfinite(middle) and middle > 0):
            raise InputError(f"the grid's middle has no place on the Earth in {crs.name!r}; check its CRS and transform.")
        #: Hectares per unit.
        self.hectares = float(middle) / UNITS / HECTARE

    @classmethod
    def of(cls, grid: GeoBox) -> PixelArea | None:
        """The areas of a grid's pixels, None where they are not known: no CRS on the Earth, or corners outside of it."""
        try:
            found = cls(grid)
        except InputError:
            return None
        rows, columns = grid.shape
        with np.errstate(invalid="ignore"):
            corners = found.at([0, 0, rows - 1, rows - 1], [0, columns - 1, 0, columns - 1])
        return found if np.isfinite(corners).all() and (corners > 0).all() else None

    def at(self, rows: ArrayLike, columns: ArrayLike) -> NDArray[np.float64]:
        """The areas of single pixels (n,) in hectares, which are not interpolated; not finite where there is no place."""
        y, x = np.asarray(rows, np.float64), np.asarray(columns, np.float64)
        return np.asarray((self._zones(y) if self._rows else self._at(y + 0.5, x + 0.5)) / HECTARE)

    def read(self, window: Window) -> NDArray[np.int64]:
        """The areas of the pixels of a window in units, (height, width); 0 where the CRS has no place on the Earth."""
        if self._rows:
            values = self._zones(np.arange(window.y, window.y + window.height, dtype=np.float64))[:, None]
        else:
            values = self._interpolated(window)
        units = np.rint(np.nan_to_num(values / (HECTARE * self.hectares), nan=0, posinf=0, neginf=0)).astype(np.int64)
        return np.broadcast_to(units, (window.height, window.width))

    def _zones(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Areas of the pixels of rows, in square metres."""
        affine, degrees = self._grid.affine, self._crs.axis_info[0].unit_conversion_factor
        edges = (affine.f + affine.e * (rows + offset) for offset in (0, 1))
        top, bottom = (np.sin(np.clip(edge * degrees, -math.pi / 2, math.pi / 2)) for edge in edges)
        return np.asarray(abs(self._authalic(bottom) - self._authalic(top)) * abs(affine.a) * degrees)

    def _authalic(self, sine: NDArray[np.float64]) -> NDArray[np.float64]:
        """Area per radian of longitude from the equator to a latitude with this sine, in square metres."""
        major, minor = self._axes
        eccentricity = math.sqrt(max(0.0, 1 - (minor / major) ** 2))
        if eccentricity == 0:
            return major**2 * sine
        log = np.arctanh(eccentricity * sine) / eccentricity
        return minor**2 / 2 * (sine / (1 - (eccentricity * sine) ** 2) + log)

    def _interpolated(self, window: Window) -> NDArray[np.float64]:
        y, x = np.arange(window.height) + window.y + 0.5, np.arange(window.width) + window.x + 0.5
        below, left = (np.floor_divide(first, STEP) for first in (window.y, window.x))
        rows = np.arange(below, (window.y + window.height) // STEP + 2) * STEP
        columns = np.arange(left, (window.x + window.width) // STEP + 2) * STEP
        nodes = self._at(rows[:, None].astype(np.float64), columns[None].astype(np.float64))
        down, across = (y - rows[0]) / STEP, (x - columns[0]) / STEP
        top, start = down.astype(int), across.astype(int)
        v, u = (down - top)[:, None], across - start
        upper = nodes[top][:, start] * (1 - u) + nodes[top][:, start + 1] * u
        lower = nodes[top + 1][:, start] * (1 - u) + nodes[top + 1][:, start + 1] * u
        found = np.asarray(upper * (1 - v) + lower * v)
        beyond = ~np.isfinite(found)  # a point next to the pixel is where the CRS is not defined
        if beyond.any():
            row, column = np.nonzero(beyond)
            found[beyond] = self._at(y[row], x[column])
        return found

    def _at(self, y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.float64]:
        """Areas of pixels centred at these rows and columns in square metres; not finite where there is no place."""
        affine, unit = self._grid.affine, self._crs.axis_info[0].unit_conversion_factor
        east, north = affine * (x, y)
        flat = abs(affine.determinant) * unit**2
        if self._crs.is_geographic:
            return np.asarray(flat * _element(north * unit, *self._axes), np.float64)
        try:
            to_degrees = pyproj.Transformer.from_crs(self._crs, self._crs.geodetic_crs, always_xy=True)
            longitude, latitude = to_degrees.transform(east, north)
            projection = pyproj.Proj(self._crs)
            scale = np.asarray(projection.get_factors(longitude, latitude).areal_scale)
        except (CRSError, ProjError) as error:
            raise InputError(f"areas in {self._crs.name!r} cannot be computed ({error}).") from error
        # Web Mercator takes latitudes on the ellipsoid for those on a sphere, to which PROJ's scale refers.
        axes = dict(re.findall(r"\+([ab])=([\d.]+)", projection.srs))
        radians = np.radians(latitude)
        element = (
            _element(radians, *(float(axes[name]) for name in "ab")) if len(axes) == 2 else _element(radians, *self._axes)
        )
        return np.asarray(flat / scale * _element(radians, *self._axes) / element, np.float64)


def _element(latitude: NDArray[np.float64], major: float, minor: float) -> NDArray[np.float64]:
    """Area on an ellipsoid per squared radian: both radii of curvature times the cosine (Snyder 4-20, 4-21)."""
    squared = 1 - (minor / major) ** 2
    return np.asarray(minor**2 * np.cos(latitude) / (1 - squared * np.sin(latitude) ** 2) ** 2)
