"""Longitudes that wrap: the parts of a raster that a grid needs where the raster's x axis goes around the Earth.

In such a CRS x and x + period are the same place. A raster may state either: 179 to 181, -181 to -179, -180 to 180 or 0 to
360 degrees; PROJ returns the value from -180 to 180.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyproj
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError, ProjError
from rasterio._err import CPLE_BaseError
from rasterio.warp import transform, transform_bounds
from shapely import STRtree

from pipeline.grid import Window

_WGS84 = pyproj.CRS.from_epsg(4326).to_wkt()
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

    @property
    def area(self) -> float:
        """Its area, in squared units of the CRS."""
        return (self.right - self.left) * (self.top - self.bottom)

    def shared(self, other: Extent) -> float:
        """The area shared with a rectangle that overlaps this one."""
        across = min(self.right, other.right) - max(self.left, other.left)
        return across * (min(self.top, other.top) - max(self.bottom, other.bottom))

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


@lru_cache(maxsize=64)
def engineering_name(wkt: str) -> str | None:
    """The name of an engineering (local) CRS, which no other CRS can be transformed to; None for another kind."""
    crs = pyproj.CRS.from_wkt(wkt)
    return crs.name if crs.is_engineering else None


def same_crs(one: CRS, other: CRS) -> bool:
    """Whether two CRSs are the same; engineering CRSs are if they have the same name."""
    if one == other:
        return True
    name = engineering_name(one.to_wkt())
    return name is not None and name == engineering_name(other.to_wkt())


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
    try:
        x = np.array(transform(grid.crs.to_wkt(), crs, across.tolist(), down.tolist())[0])
    except CPLE_BaseError:
        return found
    if not np.isfinite(x).all():
        return found
    unrolled = np.unwrap(x, period=around.period)
    if abs(unrolled[-1] - unrolled[0]) > around.period / 2 or np.ptp(unrolled) > 0.9 * around.period:
        return found
    left, right = (float((v - around.low) % around.period + around.low) for v in (unrolled.min(), unrolled.max()))
    return Extent(left, found.bottom, right, found.top)


def geographic_extents(grid: GeoBox) -> list[Extent] | None:
    """Where a grid is in WGS 84, at any turn, in two parts if it crosses 180 degrees; None if that is unknown."""
    return None if engineering_name(grid.crs.to_wkt()) else extents_in(grid, _WGS84)


def may_overlap(one: list[Extent] | None, other: list[Extent] | None) -> bool:
    """Whether two grids at these places in WGS 84 may overlap; unknown places may."""
    if one is None or other is None:
        return True
    return any(True for first in one for second in other for _ in shifts(first, second, cycle(_WGS84)))


def overlapping_pairs(places: Sequence[list[Extent] | None]) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of grids at these places in WGS 84 that may overlap, as `may_overlap` says, in order.

    A tree of rectangles finds the few pairs among the many that are close to each other.
    """
    turn, wraps = 360.0, np.array([-360.0, 0.0, 360.0])
    owner = np.array([i for i, place in enumerate(places) for _ in place or ()], np.int64)
    sides = np.array([[e.left, e.bottom, e.right, e.top] for place in places for e in place or ()]).reshape(-1, 4)
    sides[:, [0, 2]] -= (np.floor((sides[:, 0] + turn / 2) / turn) * turn)[:, None]  # each begins within one turn
    tree = STRtree(shapely.box(*sides.T))
    near = [tree.query(shapely.box(sides[:, 0] + by, sides[:, 1], sides[:, 2] + by, sides[:, 3])) for by in wraps]
    found = owner[np.concatenate(near, axis=1)].T
    unknown = [i for i, place in enumerate(places) if place is None]
    pairs = {(i, j) for i, j in np.unique(np.sort(found, axis=1), axis=0).tolist() if i != j}
    pairs |= {(min(i, j), max(i, j)) for i in unknown for j in range(len(places)) if i != j}
    return [(i, j) for i, j in sorted(pairs) if may_overlap(places[i], places[j])]


def shifts(own: Extent, place: Extent, around: Cycle | None) -> Iterator[float]:
    """The shifts along x, full turns, with which a raster at `own` overlaps `place`; 0 first."""
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
    # GDAL caches transformations by code, or by WKT 2, which has no such extension: CRSs must differ in name.
    unnamed = re.sub(r'^GEOGCS\["[^"]*"', "", re.sub(r',AUTHORITY\["[^"]*","[^"]*"\]\]$', "]", crs))
    return f'GEOGCS["centered at {longitude:.9f}"{unnamed[:-1]},EXTENSION["CENTER_LONG","{longitude:.9f}"]]'


@dataclass(frozen=True)
class RasterPart:
    """A window of the raster, and how its longitudes match those of the grid window: by a shift along x, or by a CRS."""

    window: Window
    shift: float = 0.0
    crs: str | None = None  #: in place of the raster's own
    #: Whether coordinates jump within the grid window. GDAL's samples of its border then do not show which pixels it needs.
    jumps: bool = False
    copied: bool = False  #: whether GDAL may read no other part, which could be the full width of the raster


def needed_parts(own: GeoBox, grid: GeoBox, window: Window) -> list[RasterPart]:
    """The parts of a raster that cover a grid window, with a margin for any kernel; none if it is outside the raster."""
    part = grid[window.slices]
    crs = own.crs.to_wkt()
    around = cycle(crs)
    places = [extent_of(part)] if same_crs(own.crs, grid.crs) else extents_in(part, crs)
    if around is None:
        return [RasterPart(Window(0, 0, *own.shape))] if places is None else _cuts(own, places, window, None)
    if same_crs(own.crs, grid.crs):  # coordinates do not jump, wherever they are
        assert places is not None
        return _copied(_cuts(own, places, window, around))
    if places is None:  # cannot be determined: anywhere
        places = [Extent(around.low, own.boundingbox.bottom, around.high, own.boundingbox.top)]
    if around.geographic:
        return _by_crs(own, places, window, around)
    parts = _cuts(own, places, window, around, inside=True)
    return _copied([replace(cut, jumps=len(places) > 1 or len(parts) > 1) for cut in parts])


def _by_crs(own: GeoBox, places: list[Extent], window: Window, around: Cycle) -> list[RasterPart]:
    """The parts of a raster in degrees, each with the CRS in which the grid window has its longitudes."""
    crs, extent = own.crs.to_wkt(), extent_of(own)
    place = places[0] if len(places) == 1 else replace(places[0], right=places[1].right + around.period)
    if place.right - place.left > 0.9 * around.period:  # around a pole: all longitudes, in the raster's own numbers
        slack = abs(own.affine.a)
        if around.low - slack <= extent.left and extent.right <= around.high + slack:
            return _cuts(own, [place], window, None)
        middle = (extent.left + extent.right) / 2
        whole = replace(place, left=extent.left, right=extent.right)
        return [replace(cut, crs=centered(crs, middle)) for cut in _cuts(own, [whole], window, None)]
    parts = _cuts(own, [place], window, around)
    if len(parts) == 1 and len(places) == 1 and not parts[0].shift:
        return parts
    middle = (place.left + place.right) / 2
    return _copied([replace(cut, shift=0.0, crs=centered(crs, middle - cut.shift)) for cut in parts])


def _copied(parts: list[RasterPart]) -> list[RasterPart]:
    """The parts, to be copied if there are several."""
    return [replace(part, copied=True) for part in parts] if len(parts) > 1 else parts


def _cuts(
    own: GeoBox, places: list[Extent], window: Window, around: Cycle | None, *, inside: bool = False
) -> list[RasterPart]:
    """The parts of a raster at the places of a grid window in its CRS, shifted by full turns.

    With `inside`, no place is beyond the ends of the x axis, which a margin could reach.
    """
    spans = [_in_pixels(own, place) for place in places]
    # Kernels extend up to 3 pixels (Lanczos) of the coarser of the two grids.
    room_x = 3 * max(1.0, sum(span.right - span.left for span in spans) / window.width) + 2
    room_y = 3 * max(1.0, max(span.top - span.bottom for span in spans) / window.height) + 2
    a, b, _, d, e, _ = list(own.affine)[:6]
    across, along = abs(a) * room_x + abs(b) * room_y, abs(d) * room_x + abs(e) * room_y
    found = []
    for place in places:
        near = Extent(place.left - across, place.bottom - along, place.right + across, place.top + along)
        if inside and around is not None:
            near = replace(near, left=max(near.left, around.low), right=min(near.right, around.high))
        for shift in shifts(extent_of(own), near, around):
            cut = _cut(own, _in_pixels(own, place.shifted(-shift)), room_x, room_y)
            if cut is not None:
                found.append(RasterPart(cut, shift))
    return found


def _in_pixels(own: GeoBox, place: Extent) -> Extent:
    """A rectangle of the raster's CRS in its pixels; `bottom` is the first row."""
    corners = [~own.affine * (x, y) for x in (place.left, place.right) for y in (place.bottom, place.top)]
    x, y = zip(*corners, strict=True)
    return Extent(min(x), min(y), max(x), max(y))


def _cut(own: GeoBox, span: Extent, room_x: float, room_y: float) -> Window | None:
    """The raster window around a rectangle in its pixels; None if it is outside."""
    rows, columns = own.shape
    y, x = max(0, math.floor(span.bottom - room_y)), max(0, math.floor(span.left - room_x))
    height, width = min(rows, math.ceil(span.top + room_y)) - y, min(columns, math.ceil(span.right + room_x)) - x
    return Window(y, x, height, width) if height > 0 and width > 0 else None
