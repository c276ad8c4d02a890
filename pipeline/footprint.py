"""Where on Earth a grid lies, as GeoJSON tells it: longitudes and latitudes, cut at the antimeridian (RFC 7946)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import shapely
from odc.geo.geobox import GeoBox
from shapely.affinity import translate
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

#: Points of each side of a grid: a straight side is a curve in longitude and latitude.
POINTS = 64
#: Decimals of degrees, a millimetre.
DECIMALS = 8


def footprint(grid: GeoBox) -> tuple[dict[str, Any], list[float]] | None:
    """The outline of a grid in WGS 84, and its bounds [west, south, east, north]; within half a pixel.

    Across the antimeridian the outline has two parts, and west is greater than east. None of a grid without a CRS, and
    of one that reaches beyond where its CRS is defined.
    """
    if grid.crs is None:
        return None
    longitude, latitude = _border(grid)
    if not (np.isfinite(longitude).all() and np.isfinite(latitude).all()):
        return None
    outline = _outline(np.unwrap(longitude, period=360), latitude)
    west, south, east, north = outline.bounds
    here, beyond = _parts(outline.simplify(max(east - west, north - south) / (2 * max(grid.shape))))
    if east - west >= 360:
        west, east = -180.0, 180.0
    elif east > 180:
        east -= 360
    geometry = _rounded(_geometry(here.union(beyond)))
    return json.loads(shapely.to_geojson(geometry)), [round(value, DECIMALS) for value in (west, south, east, north)]


def _border(grid: GeoBox) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Longitudes and latitudes along the four sides, the first point once more at the end."""
    rows, columns = grid.shape
    there = np.arange(POINTS) / POINTS
    zero, one = np.zeros(POINTS), np.ones(POINTS)
    x = columns * np.concatenate([there, one, 1 - there, zero, [0]])
    y = rows * np.concatenate([zero, there, one, 1 - there, [0]])
    a, b, c, d, e, f = list(grid.affine)[:6]
    longitude, latitude = grid.crs.transformer_to_crs("EPSG:4326", always_xy=True)(a * x + b * y + c, d * x + e * y + f)
    return np.asarray(longitude), np.asarray(latitude)


def _outline(longitude: np.ndarray[Any, Any], latitude: np.ndarray[Any, Any]) -> BaseGeometry:
    """The polygon of a border whose longitudes do not jump; its west lies from -180 to 180."""
    points = list(zip(longitude.tolist(), latitude.tolist(), strict=True))
    if abs(longitude[-1] - longitude[0]) > 180:  # once around a pole, which is inside
        pole = 90.0 if latitude.mean() > 0 else -90.0
        points += [(points[-1][0], pole), (points[0][0], pole)]
    outline = Polygon(points)
    if not outline.is_valid:  # folded by its projection: too large rather than none
        outline = Polygon(shapely.get_exterior_ring(outline.convex_hull))
    turns = np.floor((outline.bounds[0] + 180) / 360)
    # Rounded, or a border at the antimeridian itself could lie a hair beyond it.
    return _rounded(translate(outline, xoff=-360 * float(turns)))


def _rounded(area: BaseGeometry) -> BaseGeometry:
    return shapely.transform(area, lambda points: points.round(DECIMALS))


def _parts(outline: BaseGeometry) -> tuple[BaseGeometry, BaseGeometry]:
    """What of an outline lies from -180 to 180, and what lies beyond, brought there."""
    here, beyond = (outline.intersection(box(turn - 180, -90, turn + 180, 90)) for turn in (0, 360))
    return here, translate(beyond, xoff=-360)


def _geometry(area: BaseGeometry) -> BaseGeometry:
    """The polygons of an area, their outlines counter-clockwise; lines along its edges are left out."""
    polygons = [orient(p) for p in getattr(area, "geoms", [area]) if isinstance(p, Polygon) and not p.is_empty]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
