"""Areas of pixels on the ellipsoid, in several kinds of CRS."""

from __future__ import annotations

import math

import numpy as np
import pyproj
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.areas.pixel_area import PixelArea
from pipeline.grid import Window

GRIDS = {
    "geographic": GeoBox((64, 96), Affine(0.002, 0, 10, 0, -0.002, 60), "EPSG:4326"),
    "south up": GeoBox((64, 96), Affine(0.002, 0, 10, 0, 0.002, 60), "EPSG:4326"),
    "rotated, geographic": GeoBox((64, 96), Affine(0.002, 0.001, 10, 0.001, -0.002, 60), "EPSG:4326"),
    "UTM": GeoBox((64, 96), Affine(100, 0, 700_000, 0, -100, 6_000_000), "EPSG:32633"),
    "Web Mercator": GeoBox((64, 96), Affine(100, 0, 1_000_000, 0, -100, 8_000_000), "EPSG:3857"),
    "rotated, Web Mercator": GeoBox((64, 96), Affine(80, 60, 1_000_000, 60, -80, 8_000_000), "EPSG:3857"),
    "equal area": GeoBox((64, 96), Affine(100, 0, 4_321_000, 0, -100, 3_210_000), "EPSG:3035"),
    "feet": GeoBox((64, 96), Affine(100, 0, 0, 0, -100, 0), "+proj=laea +lat_0=51.5 +lon_0=9.25 +ellps=GRS80 +units=us-ft"),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
def test_sum_is_the_area_of_the_outline_on_the_ellipsoid(grid: GeoBox) -> None:
    area = PixelArea(grid)
    rows, columns = grid.shape
    steps = 50
    pixels = [(columns * i / steps, 0) for i in range(steps)] + [(columns, rows * i / steps) for i in range(steps)]
    pixels += [(columns - x, rows - y) for x, y in pixels]
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
    longitude, latitude = to_degrees(*zip(*(grid.affine * pixel for pixel in pixels), strict=True))
    expected = abs(crs.get_geod().polygon_area_perimeter(longitude, latitude)[0]) / 10_000
    found = float(area.read(Window(0, 0, rows, columns)).sum()) * area.hectares
    assert found == pytest.approx(expected, rel=2e-6)


def test_all_pixels_of_the_earth_have_its_area() -> None:
    area = PixelArea(GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326"))
    a, f = 6378137.0, 1 / 298.257223563
    e = math.sqrt(f * (2 - f))
    expected = 2 * math.pi * a**2 * (1 + (1 - e**2) / e * math.atanh(e)) / 10_000
    assert float(area.read(Window(0, 0, 180, 360)).sum()) * area.hectares == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
def test_area_of_a_pixel_does_not_depend_on_the_window(grid: GeoBox) -> None:
    area = PixelArea(grid)
    whole = area.read(Window(0, 0, *grid.shape))
    window = Window(13, 29, 30, 40)
    np.testing.assert_array_equal(area.read(window), whole[window.slices])


@pytest.mark.parametrize(
    "crs", [None, 'ENGCRS["site",EDATUM["site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]']
)
def test_grid_that_is_not_on_the_earth_has_no_areas(crs: str | None) -> None:
    grid = GeoBox((4, 4), Affine.identity(), crs)
    with pytest.raises(InputError, match="areas need a grid with a CRS"):
        PixelArea(grid)
    assert PixelArea.of(grid) is None


def test_areas_of_a_grid_that_reaches_beyond_its_projection_are_not_known() -> None:
    assert PixelArea.of(GeoBox((40, 30), Affine(1e6, 0, 0, 0, -1e6, 1e9), "EPSG:3035")) is None


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
def test_single_pixels_have_the_areas_of_their_outlines(grid: GeoBox) -> None:
    area = PixelArea.of(grid)
    assert area is not None
    rows, columns = np.array([0, 17, grid.shape[0] - 1]), np.array([3, 0, grid.shape[1] - 1])
    expected = [outline_hectares(grid, int(y), int(x)) for y, x in zip(rows, columns, strict=True)]
    assert area.at(rows, columns) == pytest.approx(expected, rel=3e-6)
    assert area.read(Window(0, 0, *grid.shape))[rows, columns] * area.hectares == pytest.approx(expected, rel=5e-6)


def outline_hectares(grid: GeoBox, row: int, column: int) -> float:
    """Area of a pixel's outline, with many points per side, on the ellipsoid."""
    steps = np.linspace(0, 1, 200, endpoint=False)
    x = np.concatenate([steps, np.ones(200), 1 - steps, np.zeros(200)]) + column
    y = np.concatenate([np.zeros(200), steps, np.ones(200), 1 - steps]) + row
    crs = pyproj.CRS.from_wkt(grid.crs.to_wkt())
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
    return float(abs(crs.get_geod().polygon_area_perimeter(*to_degrees(*(grid.affine * (x, y))))[0])) / 10_000


def test_sphere_has_the_formula_of_the_sphere() -> None:
    sphere = PixelArea(GeoBox((10, 10), Affine(1, 0, 0, 0, -1, 60), "+proj=longlat +R=6371000"))
    expected = 6371000**2 * math.radians(1) * (math.sin(math.radians(60)) - math.sin(math.radians(59))) / 10_000
    assert sphere.at([0], [0])[0] == pytest.approx(expected)
