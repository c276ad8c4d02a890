"""Areas of pixels against geodesic polygons and the area of the Earth."""

from __future__ import annotations

import math

import numpy as np
import pyproj
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from pipeline.assessment.pixel_area import PixelAreas
from pipeline.grid import Window
from tests.support.published_maps import CUSTOM_CRS, GEOGRAPHIC, LOCAL, UTM, make_grid

ROTATED = make_grid(Affine.translation(10, 50) * Affine.rotation(20) * Affine.scale(0.01, -0.01), "EPSG:4326")
ROTATED_UTM = make_grid(
    Affine.translation(300_000, 5_000_000) * Affine.rotation(30) * Affine.scale(2000, -2000), "EPSG:32633"
)
MERCATOR = make_grid(Affine(500, 0, 1_000_000, 0, -500, 8_000_000), "EPSG:3857")
SOUTH_UP = make_grid(Affine(0.01, 0, 10, 0, 0.01, -50), "EPSG:4326")


def geodesic_hectares(grid: GeoBox, row: int, column: int) -> float:
    """Area of a pixel's outline, with many points per side, on the ellipsoid."""
    steps = np.linspace(0, 1, 200, endpoint=False)
    x = np.concatenate([steps, np.ones(200), 1 - steps, np.zeros(200)]) + column
    y = np.concatenate([np.zeros(200), steps, np.ones(200), 1 - steps]) + row
    a, b, c, d, e, f = tuple(grid.affine)[:6]
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
    geodetic = crs.geodetic_crs
    assert geodetic is not None
    transformer = pyproj.Transformer.from_crs(crs, geodetic, always_xy=True)
    longitude, latitude = transformer.transform(a * x + b * y + c, d * x + e * y + f)
    geod = geodetic.get_geod()
    assert geod is not None
    return abs(geod.polygon_area_perimeter(longitude, latitude)[0]) / 10_000


@pytest.mark.parametrize(
    "grid", [UTM, GEOGRAPHIC, ROTATED, ROTATED_UTM, MERCATOR, SOUTH_UP, CUSTOM_CRS],
    ids=["utm", "geographic", "rotated", "rotated-utm", "mercator", "south-up", "laea-feet"],
)  # fmt: skip  # names under the grids
def test_areas_are_those_of_geodesic_polygons(grid: GeoBox) -> None:
    rows, columns = np.array([0, 17, grid.shape[0] - 1]), np.array([3, 0, grid.shape[1] - 1])
    expected = [geodesic_hectares(grid, int(y), int(x)) for y, x in zip(rows, columns, strict=True)]
    areas = PixelAreas(grid)
    assert areas.known
    assert areas.of(rows, columns) == pytest.approx(expected, rel=3e-6)
    window = np.broadcast_to(areas.window(Window(0, 0, *grid.shape)), grid.shape)
    assert window[rows, columns] == pytest.approx(expected, rel=5e-6)


def test_rows_of_the_globe_add_up_to_the_earth() -> None:
    """Of the WGS 84 ellipsoid: 510,065,622 km2."""
    globe = make_grid(Affine(1, 0, -180, 0, -1, 90), "EPSG:4326", (180, 360))
    rows = PixelAreas(globe).window(Window(0, 0, 180, 360))
    assert rows.sum() * 360 / 100 == pytest.approx(510_065_622, abs=1)


def test_projection_that_preserves_area_has_equal_pixels() -> None:
    areas = PixelAreas(CUSTOM_CRS)
    foot = 1200 / 3937
    assert areas.equal
    assert areas.window(Window(0, 0, 5, 5)).tolist() == [[pytest.approx(100 * foot**2 / 10_000)]]
    assert not PixelAreas(UTM).equal
    assert not PixelAreas(GEOGRAPHIC).equal


@pytest.mark.parametrize("window", [Window(7, 5, 1, 1), Window(0, 0, 3, 30), Window(5, 0, 35, 1)])
def test_small_windows_have_the_areas_of_their_pixels(window: Window) -> None:
    rows, columns = np.mgrid[window.y : window.y + window.height, window.x : window.x + window.width]
    expected = PixelAreas(ROTATED_UTM).of(rows.ravel(), columns.ravel()).reshape(rows.shape)
    np.testing.assert_allclose(PixelAreas(ROTATED_UTM).window(window), expected, rtol=1e-6)


def test_areas_without_a_crs_on_the_earth_are_unknown() -> None:
    assert not PixelAreas(LOCAL).known
    engineering = 'ENGCRS["site",EDATUM["site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
    assert not PixelAreas(make_grid(Affine(1, 0, 0, 0, -1, 0), engineering)).known
    beyond = make_grid(Affine(1e6, 0, 0, 0, -1e6, 1e9), "EPSG:3035")
    assert not PixelAreas(beyond).known


def test_sphere_has_the_formula_of_the_sphere() -> None:
    sphere = make_grid(Affine(1, 0, 0, 0, -1, 60), "+proj=longlat +R=6371000", (10, 10))
    expected = 6371000**2 * math.radians(1) * (math.sin(math.radians(60)) - math.sin(math.radians(59))) / 10_000
    assert PixelAreas(sphere).of([0], [0])[0] == pytest.approx(expected)
