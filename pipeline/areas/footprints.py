"""Footprints of STAC items, and how much of an area they cover. Reads what items state; opens no file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyproj
import pystac
import shapely
import shapely.affinity
import shapely.errors
import shapely.geometry
from affine import Affine
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from mibf.errors import InputError
from pipeline.areas.area import Area, box_area
from pipeline.stac.search import polygons_of

#: What statements of an item raise that are not a polygon, or whose CRS is unknown.
_UNUSABLE = (
    InputError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    shapely.errors.ShapelyError,
    pyproj.exceptions.ProjError,
)


def footprint(item: pystac.Item) -> BaseGeometry | None:
    """Return where an item has data, in degrees, at any turn; None if it states no usable polygon.

    `proj:geometry` and the item's geometry outline the data; `proj:bbox`, `proj:shape` with `proj:transform`, and `bbox` are
    boxes around them, and used where the others are missing.
    """
    for attempt in (_of_projection, _of_geometry, _of_projected_box, _of_shape, _of_box):
        try:
            found = attempt(item)
        except _UNUSABLE:  # as if it were not stated
            continue
        if found is not None and found.area > 0:
            return found
    return None


def covered(area: BaseGeometry, footprints: Sequence[BaseGeometry]) -> BaseGeometry:
    """Return the part of an area in degrees that footprints cover, at whatever turn."""
    if not footprints:
        return shapely.Polygon()
    together = shapely.union_all(list(footprints))
    (west, _, east, _), (left, _, right, _) = area.bounds, together.bounds
    turns = range(math.ceil((west - right) / 360), math.floor((east - left) / 360) + 1)
    return shapely.union_all([shapely.affinity.translate(together, 360 * turn).intersection(area) for turn in turns])


def share(area: BaseGeometry, part: BaseGeometry) -> float:
    """Return the share of an area's surface that is in a part of it, both in degrees, on a sphere."""

    def equal_area(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
        # Lambert's cylindrical projection, which keeps areas and any longitude.
        return np.column_stack([np.radians(degrees[:, 0]), np.sin(np.radians(degrees[:, 1]))])

    return float(min(1.0, shapely.transform(part, equal_area).area / shapely.transform(area, equal_area).area))


def _of_geometry(item: pystac.Item) -> BaseGeometry | None:
    return None if not item.geometry else polygons_of(item.geometry)


def _of_projection(item: pystac.Item) -> BaseGeometry | None:
    geometry = item.properties.get("proj:geometry")
    return None if not geometry else _in_degrees(item.properties, shapely.geometry.shape(geometry))


def _of_projected_box(item: pystac.Item) -> BaseGeometry | None:
    return _of_places(item, lambda place: shapely.box(*place["proj:bbox"]))


def _of_shape(item: pystac.Item) -> BaseGeometry | None:
    def of(place: dict[str, Any]) -> BaseGeometry:
        (rows, columns), values = place["proj:shape"], place["proj:transform"]
        affine = Affine(*(float(value) for value in values[:6]))
        return shapely.Polygon([affine * corner for corner in ((0, 0), (columns, 0), (columns, rows), (0, rows))])

    return _of_places(item, of)


def _of_places(item: pystac.Item, polygon: Callable[[dict[str, Any]], BaseGeometry]) -> BaseGeometry | None:
    """The polygon of the item, or of the first of its assets, that states one."""
    for place in _places(item):
        try:
            return _in_degrees(place, polygon(place))
        except KeyError:
            continue
    return None


def _places(item: pystac.Item) -> Iterator[dict[str, Any]]:
    yield item.properties
    for asset in item.assets.values():
        yield {**item.properties, **asset.extra_fields}


def _of_box(item: pystac.Item) -> BaseGeometry | None:
    box = item.bbox
    if box is None or len(box) not in (4, 6):
        return None
    half = len(box) // 2
    return box_area((box[0], box[1], box[half], box[half + 1])).geometry


def _in_degrees(place: dict[str, Any], polygon: BaseGeometry) -> BaseGeometry | None:
    names = ("proj:code", "proj:epsg", "proj:wkt2", "proj:projjson")
    stated = next((place[name] for name in names if place.get(name)), None)
    if stated is None:
        return None
    return Area("", shapely.make_valid(polygon), pyproj.CRS.from_user_input(stated)).transformed("EPSG:4326")
