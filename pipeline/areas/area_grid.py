"""Reference grids that follow from an area: its UTM zone, its bounds on the pixels of a raster or on multiples of a size."""

from __future__ import annotations

import math

import numpy as np
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.areas.area import Area, describe_degrees
from pipeline.rasters.longitude import cycle, geographic_extents, same_crs
from pipeline.rasters.resample import CLOSE
from pipeline.scenes.geometries import AreaMask

#: Latitudes from which the polar CRSs are used, in place of UTM.
NORTHERN, SOUTHERN = 84.0, -80.0
#: Universal Polar Stereographic, axes easting and northing.
UPS_NORTH, UPS_SOUTH = "EPSG:5041", "EPSG:5042"
#: Degrees of longitude above which an area is much wider than a UTM zone, which has 6.
WIDE = 9.0
#: Bounds closer than this to an edge of a pixel, in pixels, are on it.
ON_EDGE = 1e-6
#: Share of an area that may be outside the grid without a note.
OUTSIDE = 1e-3


def zone(area: Area) -> str:
    """The CRS of an area's center, the middle of its bounds in degrees: its UTM zone of WGS 84, near a pole UPS.

    Zones are 6 degrees wide everywhere: there are no exceptions for Norway and Svalbard.
    """
    extent = area.extent
    longitude, latitude = (extent.left + extent.right) / 2, (extent.bottom + extent.top) / 2
    if latitude >= NORTHERN:
        return UPS_NORTH
    if latitude < SOUTHERN:
        return UPS_SOUTH
    return str(CRS.utm((longitude + 180) % 360 - 180, latitude))


def zone_note(area: Area, crs: str) -> str | None:
    """A note for an area that is much wider than the UTM zone that was chosen for it."""
    width = area.extent.right - area.extent.left
    if crs in (UPS_NORTH, UPS_SOUTH) or width <= WIDE:
        return None
    return (
        f"area {area.name}: is {width:.1f} degrees of longitude wide, but a UTM zone has 6; `grid.crs: auto` chose {crs}, "
        "in which pixels at its ends are distorted: consider a CRS for all of it, such as an equal-area projection"
    )


def covering(area: Area, crs: CRS, resolution: float, pixels: GeoBox, *, scale: int) -> GeoBox:
    """The grid of an area in a CRS: on the pixels of a raster, if those have this CRS and resolution, else on its multiples.

    Args:
        area: its bounds, enlarged to whole pixels, are those of the grid.
        crs: of the grid.
        resolution: of the grid, in units of the CRS.
        pixels: the grid of the raster.
        scale: the raster's pixels per grid pixel along an axis.

    Raises:
        InputError: the area cannot be transformed to the CRS.
    """
    left, bottom, right, top = area.transformed(crs.to_wkt()).bounds
    a, b, x, d, e, y = list(pixels.affine)[:6]
    close = all(abs(size * scale - resolution) <= ON_EDGE * resolution for size in (a, -e))
    if pixels.crs is None or not same_crs(pixels.crs, crs) or not close or b or d:
        x, y = 0.0, 0.0
    first_x, last_x = _edges((left - x) / resolution, (right - x) / resolution)
    first_y, last_y = _edges((y - top) / resolution, (y - bottom) / resolution)
    affine = Affine(resolution, 0, x + first_x * resolution, 0, -resolution, y - first_y * resolution)
    return GeoBox((last_y - first_y, last_x - first_x), affine, crs)


def _edges(first: float, last: float) -> tuple[int, int]:
    """The edges of pixels at or outside two places, at least one pixel apart."""
    start = math.floor(first + ON_EDGE)
    return start, max(math.ceil(last - ON_EDGE), start + 1)


def cropped(grid: GeoBox, area: Area) -> GeoBox:
    """The part of a grid within the bounds of an area.

    Where longitudes wrap, it may extend beyond an end of the grid and continue at the other end.

    Raises:
        InputError: the area does not overlap the grid, or cannot be transformed to its CRS.
    """
    rows, whole = grid.shape[0], area.on(grid)
    inverse = ~grid.affine
    pixels = shapely.transform(whole, lambda points: np.column_stack(inverse * tuple(points.T)))
    left, top, right, bottom = shapely.bounds(pixels)
    across = None if whole.is_empty else _columns(grid, left, right)
    down = max(0.0, top), min(float(rows), bottom)
    if across is None or down[1] - down[0] <= ON_EDGE:
        places = geographic_extents(grid)
        theirs = "" if places is None else f"; the grid spans {describe_degrees(places)}"
        raise InputError(f"area {area.name}: does not overlap the reference grid. It spans {area.describe()}{theirs}.")
    (first_x, last_x), (first_y, last_y) = _edges(*across), _edges(*down)
    affine = grid.affine * Affine.translation(first_x, first_y)
    return GeoBox((last_y - first_y, last_x - first_x), affine, grid.crs)


def _columns(grid: GeoBox, left: float, right: float) -> tuple[float, float] | None:
    """The columns of a grid from `left` to `right`, in pixels, at any turn; None if it has none of them."""
    columns, around = float(grid.shape[1]), cycle(grid.crs.to_wkt())
    if around is None or grid.affine.d:
        found = max(0.0, left), min(columns, right)
        return found if found[1] - found[0] > ON_EDGE else None
    period = around.period / grid.affine.a
    turns = range(math.ceil(-right / period), math.floor((columns - left) / period) + 1)
    parts = [(max(0.0, left + turn * period), min(columns, right + turn * period), turn) for turn in turns]
    parts = [part for part in parts if part[1] - part[0] > ON_EDGE]
    if not parts:
        return None
    start, stop, own = max(parts, key=lambda part: part[1] - part[0])
    if abs(period - round(period)) <= CLOSE:  # the other parts are on the same pixels
        start = min(part[0] - (part[2] - own) * period for part in parts)
        stop = max(part[1] - (part[2] - own) * period for part in parts)
    return start, stop


def outside_note(area: Area, grid: GeoBox, mask: AreaMask) -> str | None:
    """A note on an area of which a part is outside the grid."""
    whole = float(area.on(grid).area)
    share = 1 - float(shapely.area(mask.geometries).sum()) / whole
    return f"area {area.name}: {share:.1%} of it is outside the reference grid" if share > OUTSIDE else None
