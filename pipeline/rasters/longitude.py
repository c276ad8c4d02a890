"""Longitudes that wrap: where a grid lies in the coordinates of a CRS whose x axis goes around the Earth.

In such a CRS x and x + period are the same place. A raster may state either: 179 to 181, -181 to -179, -180 to 180 or 0 to
360 degrees; PROJ returns the value from -180 to 180.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyproj
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError, ProjError
from rasterio._err import CPLE_BaseError
from rasterio.warp import transform, transform_bounds

#: Points along a side of a grid: a straight side is a curve in another CRS.
DENSIFIED = 21
#: Projections whose x axis is proportional to longitude, by the beginnings of their names in WKT.
_CYLINDRICAL = (
    "mercator", "popular visualisation pseudo mercator", "equidistant cylindrical", "lambert cylindrical equal area",
    "plate carree", "miller cylindrical", "gall stereographic", "equirectangular",
)  # fmt: skip  # a list of names: one per line would fill a page


@dataclass(frozen=True)
class Cycle:
    """The x axis of a CRS that wraps: PROJ returns x from `low` to `low + period`."""

    low: float
    period: float
    geographic: bool = False  #: whether x is a longitude, for which GDAL can return another turn

    @property
    def high(self) -> float:
        """The greatest x that PROJ returns."""
        return self.low + self.period


@dataclass(frozen=True)
class Extent:
    """A rectangle in the coordinates of a CRS."""

    left: float
    bottom: float
    right: float
    top: float

    def shifted(self, x: float) -> Extent:
        """The rectangle moved along x."""
        return Extent(self.left + x, self.bottom, self.right + x, self.top)

    def overlaps(self, other: Extent) -> bool:
        """Whether two rectangles share an area."""
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top


@lru_cache(maxsize=64)
def cycle(wkt: str) -> Cycle | None:
    """How the x axis of a CRS wraps; None if it does not."""
    try:
        crs = pyproj.CRS.from_wkt(wkt)
        while crs.is_bound and crs.source_crs is not None:
            crs = crs.source_crs
        if crs.is_geographic:
            units = {axis.unit_conversion_factor for axis in crs.axis_info if axis.direction in ("east", "west")}
            period = 2 * math.pi / next(iter(units))
            return Cycle(-period / 2, period, geographic=True)
        operation = crs.coordinate_operation
        if not crs.is_projected or operation is None or crs.geodetic_crs is None:
            return None
        if not operation.method_name.lower().startswith(_CYLINDRICAL):
            return None
        origins = [parameter for parameter in operation.params if parameter.name.lower().startswith("longitude of")]
        middle = math.degrees(float(origins[0].value) * origins[0].unit_conversion_factor) if origins else 0.0
        project = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform
        west, east = (project(middle + degrees, 0.0, errcheck=True)[0] for degrees in (-90, 90))
    except (CRSError, ProjError, StopIteration):
        return None
    return Cycle(west - (east - west) / 2, 2 * (east - west)) if east > west else None


def extent_of(grid: GeoBox) -> Extent:
    """A grid's extent in its own CRS."""
    box = grid.boundingbox
    return Extent(box.left, box.bottom, box.right, box.top)


def extents_in(grid: GeoBox, crs: str) -> list[Extent] | None:
    """Where a grid lies in another CRS, as PROJ returns it: two parts if it crosses the ends of the x axis.

    None if the grid cannot be transformed.
    """
    around = cycle(crs)
    try:
        bounds = transform_bounds(grid.crs.to_wkt(), crs, *grid.boundingbox, densify_pts=DENSIFIED)
    except CPLE_BaseError:
        return None
    if not np.isfinite(bounds).all():
        return None
    found = Extent(*bounds)
    if around is not None and found.right >= found.left and found.right - found.left > around.period / 2:
        found = _continuous(grid, crs, around, found)
    if found.left <= found.right:
        return [found]
    if around is None:
        return None
    return [
        Extent(found.left, found.bottom, around.high, found.top),
        Extent(around.low, found.bottom, found.right, found.top),
    ]


def _continuous(grid: GeoBox, crs: str, around: Cycle, found: Extent) -> Extent:
    """The extent of a grid whose border jumps from one end of the x axis to the other: left is greater than right.

    As it was found if the border does not jump, or goes around a pole.
    """
    if grid.crs.to_wkt() == crs:
        return found
    steps = np.arange(DENSIFIED) / DENSIFIED
    ones, zeros = np.ones(DENSIFIED), np.zeros(DENSIFIED)
    box = grid.boundingbox
    across = np.concatenate([steps, ones, 1 - steps, zeros, [0]]) * (box.right - box.left) + box.left
    down = np.concatenate([zeros, steps, ones, 1 - steps, [0]]) * (box.bottom - box.top) + box.top
    x = np.array(transform(grid.crs.to_wkt(), crs, across.tolist(), down.tolist())[0])
    if not np.isfinite(x).all():
        return found
    unrolled = np.unwrap(x, period=around.period)
    if abs(unrolled[-1] - unrolled[0]) > around.period / 2 or np.ptp(unrolled) > 0.9 * around.period:
        return found
    left, right = (float((v - around.low) % around.period + around.low) for v in (unrolled.min(), unrolled.max()))
    return Extent(left, found.bottom, right, found.top)


def shifts(own: Extent, place: Extent, around: Cycle | None) -> Iterator[float]:
    """The shifts along x, whole turns, with which a raster at `own` overlaps `place`; 0 first."""
    if own.overlaps(place):
        yield 0.0
    if around is None:
        return
    first = math.ceil((place.left - own.right) / around.period - 1e-9)
    last = math.floor((place.right - own.left) / around.period + 1e-9)
    for turn in range(first, last + 1):
        if turn and own.shifted(turn * around.period).overlaps(place):
            yield turn * around.period


@lru_cache(maxsize=256)
def centered(wkt: str, longitude: float) -> str | None:
    """A geographic CRS for which GDAL returns longitudes within half a turn of `longitude`, as gdalwarp does.

    None if WKT 1, which has this extension, cannot hold the CRS.
    """
    try:
        crs = pyproj.CRS.from_wkt(wkt).to_wkt("WKT1_GDAL")
    except CRSError:
        return None
    if not crs.startswith("GEOGCS["):
        return None
    # GDAL caches transformations by code, or by WKT 2, which has no such extension: the name must tell CRSs apart.
    unnamed = re.sub(r'^GEOGCS\["[^"]*"', "", re.sub(r',AUTHORITY\["[^"]*","[^"]*"\]\]$', "]", crs))
    return f'GEOGCS["centered at {longitude:.9f}"{unnamed[:-1]},EXTENSION["CENTER_LONG","{longitude:.9f}"]]'
