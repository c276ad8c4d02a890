"""Reference grids that follow from an area: its UTM zone, its bounds on the pixels of a raster or on multiples of a size."""

from __future__ import annotations

import json
import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pyproj
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
#: Parts of an area along each axis, and points along a part, with which its size is measured: sides are curves on the
#: ground.
PARTS, STEPS = 8, 32
#: Parts of a pixel to which the points of an outline are rounded.
FRACTIONS = 1000
#: Maximum points of an outline, and the decimal places of its degrees: about a millimeter.
POINTS, DECIMALS = 2000, 8
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


def square_kilometers(mask: AreaMask) -> float:
    """The size of the pixels of a grid that are in an area, on the ellipsoid."""
    left, bottom, right, top = shapely.total_bounds(mask.geometries)
    x, y = (np.linspace(low, high, PARTS + 1) for low, high in ((left, right), (bottom, top)))
    # In parts, because a polygon around the Earth has no inside.
    boxes = product(pairwise(x), pairwise(y))
    parts = [shapely.clip_by_rect(mask.geometries, west, south, east, north) for (west, east), (south, north) in boxes]
    step = max(right - left, top - bottom) / (PARTS * STEPS)
    to_degrees = mask.grid.crs.transformer_to_crs("EPSG:4326", always_xy=True)
    ellipsoid, found = pyproj.Geod(ellps="WGS84"), 0.0
    for part in shapely.segmentize(shapely.get_parts(np.concatenate(parts)), step):
        place = shapely.transform(part, lambda points: np.column_stack(to_degrees(*points.T)))
        found += abs(ellipsoid.geometry_area_perimeter(place)[0]) / 1e6
    return found


def outline(mask: AreaMask) -> dict[str, Any] | None:
    """The part of an area that is on a grid, as a GeoJSON geometry in degrees, in one piece: longitudes may exceed 180.

    It is accurate to half a pixel, or has about `POINTS` points. None if it has no place in degrees.
    """
    size = float(np.sqrt(abs(mask.grid.affine.determinant)))
    whole = shapely.union_all(mask.geometries, grid_size=size / FRACTIONS)  # without slivers between its pieces
    try:
        found = Area("", whole, pyproj.CRS.from_wkt(mask.grid.crs.to_wkt())).transformed("EPSG:4326")
    except InputError:
        return None
    west, south, east, north = found.bounds
    tolerance = max(east - west, north - south) / (2 * max(mask.grid.shape))
    simple = found.simplify(tolerance)
    while shapely.get_num_coordinates(simple) > POINTS:
        tolerance *= 2
        simple = found.simplify(tolerance)
    rounded = shapely.transform(simple, lambda points: points.round(DECIMALS))
    valid = shapely.make_valid(rounded, method="structure", keep_collapsed=False)
    geometry: dict[str, Any] = json.loads(shapely.to_geojson(valid))
    return geometry


def outside_note(area: Area, grid: GeoBox, mask: AreaMask) -> str | None:
    """A note on an area of which a part is outside the grid."""
    whole = float(area.on(grid).area)
    share = 1 - float(shapely.area(mask.geometries).sum()) / whole
    return f"area {area.name}: {share:.1%} of it is outside the reference grid" if share > OUTSIDE else None
