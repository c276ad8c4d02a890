"""Footprints of map grids: antimeridian, poles, global grids and grids outside the domain of their CRS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import Point, shape

from pipeline.publishing.footprint import footprint
from tests.support.published_maps import ANTIMERIDIAN, CUSTOM_CRS, GEOGRAPHIC, UTM, make_grid

pytestmark = pytest.mark.usefixtures("offline")


def test_footprint_of_geographic_grid_has_four_corners() -> None:
    found = footprint(GEOGRAPHIC)
    assert found is not None
    geometry, bbox = found
    assert len(geometry["coordinates"][0]) == 5
    assert bbox == [10.0, 49.6, 10.3, 50.0]


@pytest.mark.parametrize(
    "place", [UTM, GEOGRAPHIC, ANTIMERIDIAN, CUSTOM_CRS, GeoBox((1, 9), UTM.affine, "EPSG:32633")], ids=str
)
def test_footprint_covers_its_grid_to_within_a_pixel(place: GeoBox) -> None:
    found = footprint(place)
    assert found is not None
    outline = shape(found[0])
    assert outline.is_valid
    rows, columns = place.shape
    inside = [(y + 0.5, x + 0.5) for y in {0, rows // 2, rows - 1} for x in {0, columns // 2, columns - 1}]
    beyond = [(-1.5, columns / 2), (rows + 1.5, columns / 2), (rows / 2, -1.5), (rows / 2, columns + 1.5)]
    to_earth = place.crs.transformer_to_crs("EPSG:4326", always_xy=True)
    for positions, wanted in ((inside, True), (beyond, False)):
        for y, x in positions:
            a, b, c, d, e, f = list(place.affine)[:6]
            assert outline.contains(Point(to_earth(a * x + b * y + c, d * x + e * y + f))) is wanted, (y, x)


def rings(geometry: dict[str, Any]) -> Iterator[list[list[float]]]:
    for polygon in geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]:
        yield from polygon


def test_footprint_across_the_antimeridian_has_two_polygons() -> None:
    found = footprint(ANTIMERIDIAN)
    assert found is not None
    geometry, (west, south, east, north) = found
    assert geometry["type"] == "MultiPolygon"
    assert -180 < east < -178 < 178 < west < 180
    assert -19 < south < north < -17
    east_of, west_of = ({x > 0 for x, _ in ring} for ring in rings(geometry))
    assert (east_of, west_of) == ({True}, {False})
    assert all(shapely.LinearRing(ring).is_ccw for ring in rings(geometry)), "counter-clockwise, as RFC 7946 requires"


@pytest.mark.parametrize(
    ("place", "bbox"),
    [
        (make_grid(Affine(1e5, 0, -2e6, 0, -1e5, 2e6), "EPSG:3413", (40, 40)), [-180, 64.3, 180, 90]),
        (make_grid(Affine(1e5, 0, -2e6, 0, -1e5, 2e6), "EPSG:3031", (40, 40)), [-180, -90, 180, -64.4]),
        (make_grid(Affine(1, 0, -180, 0, -1, 90), "EPSG:4326", (180, 360)), [-180, -90, 180, 90]),
        (make_grid(Affine(1, 0, 0, 0, -1, 90), "EPSG:4326", (180, 360)), [-180, -90, 180, 90]),
        (make_grid(Affine(0.1, 0, 350, 0, -0.1, 5), "EPSG:4326", (100, 200)), [-10, -5, 10, 5]),
        (make_grid(Affine(0.1, 0, 170, 0, -0.1, 5), "EPSG:4326", (100, 100)), [170, -5, 180, 5]),
    ],
)
def test_polar_and_global_grids_have_valid_footprints(place: GeoBox, bbox: list[float]) -> None:
    found = footprint(place)
    assert found is not None
    assert found[1] == pytest.approx(bbox, abs=0.1)
    assert shape(found[0]).is_valid
    assert all(-180 <= x <= 180 and -90 <= y <= 90 for ring in rings(found[0]) for x, y in ring)


def test_grid_outside_the_domain_of_its_crs_has_no_footprint() -> None:
    assert footprint(make_grid(Affine(1e6, 0, -15e6, 0, -1e6, 20e6), "+proj=geos +h=35785831 +lon_0=0")) is None


def test_footprint_of_grid_in_an_engineering_crs_is_unknown() -> None:
    assert footprint(GeoBox((40, 40), Affine(10, 0, 0, 0, -10, 400), 'LOCAL_CS["site grid",UNIT["metre",1]]')) is None


@pytest.mark.parametrize("turn", [0, 360])
def test_footprint_of_an_area_is_its_own_outline(turn: int) -> None:
    """Not the rectangle of its grid; in two parts across the antimeridian."""
    triangle = shapely.Polygon([(turn + 179, -17), (turn + 181, -17), (turn + 180, -16)])
    found = footprint(ANTIMERIDIAN, json.loads(shapely.to_geojson(triangle)))
    assert found is not None
    geometry, bbox = found
    assert bbox == [179.0, -17.0, -179.0, -16.0]
    halves = [
        shapely.Polygon([(179, -17), (180, -17), (180, -16)]),
        shapely.Polygon([(-180, -17), (-179, -17), (-180, -16)]),
    ]
    assert shape(geometry).equals(shapely.MultiPolygon(halves))
    assert all(shapely.LinearRing(ring).is_ccw for ring in rings(geometry))
    east = footprint(ANTIMERIDIAN, {"type": "Polygon", "coordinates": [[[1, 1], [2, 1], [2, 2], [1, 1]]]})
    assert east is not None
    assert east[1] == [1.0, 1.0, 2.0, 2.0]
