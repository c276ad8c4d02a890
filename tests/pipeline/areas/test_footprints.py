"""Footprints of STAC items by what they state, and their share of an area; pyproj's geodesic areas are the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
import pystac
import pytest
import shapely

from pipeline.areas.footprints import covered, footprint, share

UTM = shapely.box(500_000, 4_000_000, 520_000, 4_030_000)
SHAPE = {"proj:shape": [3000, 2000], "proj:transform": [10, 0, 500_000, 0, -10, 4_030_000]}


def item(
    geometry: Any = None, bbox: Any = None, assets: dict[str, dict[str, Any]] | None = None, **properties: Any
) -> pystac.Item:
    content = {
        "type": "Feature", "stac_version": "1.0.0", "id": "a", "links": [], "geometry": geometry,
        "properties": {"datetime": "2024-06-01T10:00:00Z"} | properties,
        "assets": {key: {"href": "a.tif"} | own for key, own in (assets or {}).items()},
    } | ({} if bbox is None else {"bbox": bbox})  # fmt: skip  # values in rows that belong together
    return pystac.Item.from_dict(content)


def square_meters(degrees: Any) -> float:
    return abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(degrees)[0])


@pytest.mark.parametrize(
    "stated",
    [
        {"proj:code": "EPSG:32612", "proj:geometry": shapely.geometry.mapping(UTM)},
        {"proj:epsg": 32612, "proj:bbox": list(UTM.bounds)},
        {"proj:code": "EPSG:32612"} | SHAPE,
        {"proj:wkt2": pyproj.CRS(32612).to_wkt(), "assets": {"thumbnail": {}, "red": SHAPE}},
        {"proj:code": "EPSG:32612", "proj:geometry": {"type": "Polygon"}, "proj:bbox": list(UTM.bounds)},
    ],
)
def test_footprint_is_what_the_projection_states(stated: dict[str, Any]) -> None:
    found = footprint(item(**stated))
    assert found is not None
    to_degrees = pyproj.Transformer.from_crs(32612, 4326, always_xy=True).transform
    corners = np.array([to_degrees(*corner) for corner in UTM.exterior.coords])
    assert found.bounds == pytest.approx([*corners.min(axis=0), *corners.max(axis=0)], abs=2e-4)
    expected = shapely.transform(shapely.segmentize(UTM, 500), lambda xy: np.column_stack(to_degrees(*xy.T)))
    assert square_meters(found) == pytest.approx(square_meters(expected), rel=1e-6)


def test_outline_of_the_data_comes_before_the_box_of_the_raster() -> None:
    half = shapely.box(-111, 36, -110.9, 36.1)
    found = footprint(item(shapely.geometry.mapping(half), **{"proj:epsg": 32612, "proj:bbox": list(UTM.bounds)}))
    assert found is not None
    assert found.equals(half)
    assert footprint(item(bbox=[-111, 36, 0, -110, 37, 9])) == shapely.box(-111, 36, -110, 37)
    assert footprint(item(shapely.geometry.mapping(shapely.Point(1, 2)))) is None
    assert footprint(item()) is None


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Polygon", "coordinates": [[[179, 0], [-179, 0], [-179, 1], [179, 1], [179, 0]]]},
        {"type": "Polygon", "coordinates": [[[179, 0], [181, 0], [181, 1], [179, 1], [179, 0]]]},
        {"type": "Polygon", "coordinates": [[[-181, 0], [-179, 0], [-179, 1], [-181, 1], [-181, 0]]]},
        shapely.geometry.mapping(shapely.MultiPolygon([shapely.box(179, 0, 180, 1), shapely.box(-180, 0, -179, 1)])),
    ],
)
@pytest.mark.parametrize("turn", [0, 360, -360])
def test_footprint_across_the_antimeridian_covers_what_is_there(geometry: dict[str, Any], turn: int) -> None:
    found = footprint(item(geometry))
    assert found is not None
    area = shapely.box(178 + turn, 0, 182 + turn, 1)
    assert share(area, covered(area, [found])) == pytest.approx(0.5)
    elsewhere = shapely.box(0, 0, 10, 1)
    assert covered(elsewhere, [found]).is_empty


def test_item_of_the_whole_earth_covers_it() -> None:
    found = footprint(item(shapely.geometry.mapping(shapely.box(-180, -90, 180, 90))))
    assert found is not None
    area = shapely.box(10, 40, 11, 41)
    assert share(area, covered(area, [found])) == pytest.approx(1)


def test_coverage_is_of_the_surface_not_of_degrees() -> None:
    world = shapely.box(-180, -90, 180, 90)
    for south, north, expected in ((-90, 0, 0.5), (30, 90, 0.25)):
        assert share(world, covered(world, [shapely.box(-180, south, 180, north)])) == pytest.approx(expected)
    area = shapely.box(0, 0, 1, 1)
    assert share(area, covered(area, [shapely.box(2, 0, 3, 1)])) == share(area, covered(area, [])) == 0
    overlapping = [shapely.box(0, 0, 0.6, 1), shapely.box(0.4, 0, 0.8, 1), shapely.box(0.4, 0, 0.8, 1)]
    assert share(area, covered(area, overlapping)) == pytest.approx(0.8)
