"""Footprint of a map as GeoJSON: longitudes and latitudes, cut at the antimeridian (RFC 7946)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
import shapely.geometry
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from shapely.affinity import translate
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

#: Points per side of a grid: a straight side is a curve in longitude and latitude.
POINTS = 64
#: Decimal places of degrees; about a millimetre.
DECIMALS = 8


def footprint(grid: GeoBox, area: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], list[float]] | None:
    """Return the outline of a grid, or of the area on it, in WGS 84 and its bounds [west, south, east, north].

    That of a grid is accurate to half a pixel. Across the antimeridian the outline has two parts, and west is greater than
    east. None for a grid without a CRS, or one that extends beyond the area where its CRS is defined, or is not on the
    Earth.

    Args:
        grid: the map's.
        area: GeoJSON geometry in degrees, in one piece where it crosses the antimeridian; None: the entire grid.
    """
    if area is not None:
        return _in_range(_first_turn(shapely.geometry.shape(dict(area))))
    if grid.crs is None:
        return None
    try:
        longitude, latitude = _border(grid)
    except ProjError:  # an engineering CRS
        return None
    if not (np.isfinite(longitude).all() and np.isfinite(latitude).all()):
        return None
    outline = _outline(np.unwrap(longitude, period=360), latitude)
    west, south, east, north = outline.bounds
    return _in_range(outline, tolerance=max(east - west, north - south) / (2 * max(grid.shape)))


def union_of_bounds(bounds: Sequence[Sequence[float]]) -> list[float]:
    """The smallest bounds [west, south, east, north] around others; where they cross the antimeridian, west is greater.

    >>> union_of_bounds([[170, -20, -175, -10], [160, -15, 165, -5]])
    [160, -20, -175, -5]
    """
    south, north = min(box[1] for box in bounds), max(box[3] for box in bounds)
    spans = sorted((west, east if west <= east else east + 360) for west, _, east, _ in bounds)
    # Around the circle, the bounds begin after the widest gap; if two are equally wide, after that at the antimeridian.
    start, end = spans[0][0], max(east for _, east in spans)
    widest, reached = start + 360 - end, max(start, end - 360)  # the last may reach around to the first
    for west, east in spans:
        if west - reached > widest:
            widest, start, end = west - reached, west, reached
        reached = max(reached, east)
    if widest <= 0:
        return [-180.0, south, 180.0, north]
    return [start, south, end if end <= 180 else end - 360, north]


def _in_range(outline: BaseGeometry, *, tolerance: float = 0.0) -> tuple[dict[str, Any], list[float]]:
    """The parts of an outline with longitudes up to 180, and its bounds."""
    west, south, east, north = outline.bounds
    within, beyond = _parts(outline.simplify(tolerance) if tolerance else outline)
    if east - west >= 360:
        west, east = -180.0, 180.0
    elif east > 180:
        east -= 360
    geometry = _rounded(_geometry(within.union(beyond)))
    return json.loads(shapely.to_geojson(geometry)), [round(value, DECIMALS) for value in (west, south, east, north)]


def _border(grid: GeoBox) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Longitudes and latitudes along the four sides; the first point is repeated at the end."""
    rows, columns = grid.shape
    there = np.arange(POINTS) / POINTS
    zero, one = np.zeros(POINTS), np.ones(POINTS)
    x = columns * np.concatenate([there, one, 1 - there, zero, [0]])
    y = rows * np.concatenate([zero, there, one, 1 - there, [0]])
    a, b, c, d, e, f = list(grid.affine)[:6]
    longitude, latitude = grid.crs.transformer_to_crs("EPSG:4326", always_xy=True)(a * x + b * y + c, d * x + e * y + f)
    return np.asarray(longitude), np.asarray(latitude)


def _outline(longitude: np.ndarray[Any, Any], latitude: np.ndarray[Any, Any]) -> BaseGeometry:
    """The polygon of a border with continuous longitudes, shifted so that its west is from -180 to 180."""
    points = list(zip(longitude.tolist(), latitude.tolist(), strict=True))
    if abs(longitude[-1] - longitude[0]) > 180:  # encircles a pole, which is inside
        pole = 90.0 if latitude.mean() > 0 else -90.0
        points += [(points[-1][0], pole), (points[0][0], pole)]
    outline = Polygon(points)
    if not outline.is_valid:  # folded by its projection: an outline that is too large is better than none
        outline = Polygon(shapely.get_exterior_ring(outline.convex_hull))
    return _first_turn(outline)


def _first_turn(outline: BaseGeometry) -> BaseGeometry:
    """An outline shifted by full turns so that its west is from -180 to 180."""
    turns = np.floor((outline.bounds[0] + 180) / 360)
    # Rounded, because a border exactly on the antimeridian could otherwise be slightly beyond it.
    return _rounded(translate(outline, xoff=-360 * float(turns)))


def _rounded(area: BaseGeometry) -> BaseGeometry:
    return shapely.transform(area, lambda points: points.round(DECIMALS))


def _parts(outline: BaseGeometry) -> tuple[BaseGeometry, BaseGeometry]:
    """Split an outline into the part from -180 to 180 and the part beyond, shifted into that range."""
    within, beyond = (outline.intersection(box(turn - 180, -90, turn + 180, 90)) for turn in (0, 360))
    return within, translate(beyond, xoff=-360)


def _geometry(area: BaseGeometry) -> BaseGeometry:
    """The polygons of an area, outlines counter-clockwise; degenerate lines along its edges are dropped."""
    polygons = [orient(p) for p in getattr(area, "geoms", [area]) if isinstance(p, Polygon) and not p.is_empty]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
