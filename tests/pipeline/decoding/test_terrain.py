"""Slope, northness and eastness against GDAL, formulas of the ellipsoid, and numpy's least squares."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.decoding.derived import derived_band
from pipeline.decoding.expression import parse
from pipeline.decoding.terrain import Terrain, check_ground
from pipeline.grid import Window
from tests.support.scenes import write_raster

SHAPE = (40, 50)
WHOLE = Window(0, 0, *SHAPE)
#: 10 m pixels at the central meridian of a UTM zone.
UTM = GeoBox(SHAPE, Affine(10, 0, 499_750, 0, -10, 4_000_200), "EPSG:32612")
HEIGHTS = 800 + np.random.default_rng(0).normal(scale=6, size=SHAPE).cumsum(axis=0).cumsum(axis=1) / 5
NAMES = ("height",)
NEIGHBORS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def computed(
    function: str, heights: np.ndarray = HEIGHTS, *, grid: GeoBox = UTM, valid: np.ndarray | None = None, at: Window = WHOLE
) -> np.ndarray:
    """A function of heights, NaN where it has no value."""
    terrain = Terrain(grid, at, np.ones(heights.shape, bool) if valid is None else valid)
    values, finite = derived_band(parse(f"{function}(height)", NAMES), {"height": heights}, terrain)
    return np.where(finite, values, np.nan)


def positions(grid: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates x and y of pixel centers in the grid's CRS."""
    rows, columns = grid.shape
    x, y = grid.affine * np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
    return x, y


def gdaldem(mode: str, path: Path, *options: str) -> np.ndarray:
    """What GDAL's own implementation computes, by the function behind `gdaldem` in the library that rasterio loads."""
    found = list(Path(rasterio.__file__).parent.with_name("rasterio.libs").glob("libgdal*"))
    if len(found) != 1:
        pytest.skip("rasterio has no GDAL of its own")
    gdal = ctypes.CDLL(str(found[0]))
    for function in (gdal.GDALOpen, gdal.GDALDEMProcessing, gdal.GDALDEMProcessingOptionsNew):
        function.restype = ctypes.c_void_p
    with rasterio.Env():
        opened = ctypes.c_void_p(gdal.GDALOpen(str(path).encode(), 0))
        argv = (ctypes.c_char_p * (len(options) + 1))(*(option.encode() for option in options), None)
        chosen = ctypes.c_void_p(gdal.GDALDEMProcessingOptionsNew(argv, None))
        target = path.with_name(f"{mode}.tif")
        made = gdal.GDALDEMProcessing(str(target).encode(), opened, mode.encode(), None, chosen, None)
        assert made
        gdal.GDALClose(ctypes.c_void_p(made))
        gdal.GDALDEMProcessingOptionsFree(chosen)
        gdal.GDALClose(opened)
    with rasterio.open(target) as dataset:
        return np.where(dataset.read_masks(1) > 0, dataset.read(1), np.nan)


def test_slope_and_aspect_equal_gdals(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "dem.tif", HEIGHTS[None].astype(np.float32), transform=UTM.affine, crs="EPSG:32612")
    # GDAL takes meters of the projection, of which 0.9996 are 1 m on the ground at the central meridian.
    slope = gdaldem("slope", path, "-s", str(1 / 0.9996))
    aspect = np.radians(gdaldem("aspect", path))
    heights = HEIGHTS.astype(np.float32)
    inner = np.s_[1:-1, 1:-1]  # GDAL has none at the edges, and computes in float32
    assert np.isnan(slope).sum() == 2 * sum(SHAPE) - 4
    assert np.nanmax(slope) > 50
    assert computed("slope", heights)[inner] == pytest.approx(slope[inner], abs=1e-3)
    sine = np.sin(np.radians(slope))
    assert computed("northness", heights)[inner] == pytest.approx((sine * np.cos(aspect))[inner], abs=1e-3)
    assert computed("eastness", heights)[inner] == pytest.approx((sine * np.sin(aspect))[inner], abs=1e-3)


@pytest.mark.parametrize(
    ("crs", "affine"),
    [
        ("EPSG:32612", Affine(10, 0, 650_000, 0, -10, 7_000_000)),
        ("EPSG:32612", Affine(10, 0, 650_000, 0, -10, 7_000_000) * Affine.rotation(30)),
        ("EPSG:32612", Affine(20, 0, 650_000, 0, 10, 7_000_000)),  # bottom-up, and not square
        ("EPSG:2225", Affine(10, 0, 6_000_000, 0, -10, 2_100_000)),  # US survey feet
        ("EPSG:27572", Affine(10, 0, 900_000, 0, -10, 2_400_000)),  # of a datum in grads
    ],
)
def test_planes_have_their_slope_on_the_ground_in_any_projection(crs: str, affine: Affine) -> None:
    """Scales and convergence of a projection by PROJ's own formulas."""
    grid = GeoBox(SHAPE, affine, crs)
    x, y = positions(grid)
    projection = pyproj.Proj(crs)
    longitude, latitude = projection(x, y, inverse=True)
    # PROJ counts them from the meridian of the CRS; that of Paris is in grads.
    factors = projection.get_factors(longitude - pyproj.CRS(crs).prime_meridian.longitude * 360 / 400, latitude)
    unit = pyproj.CRS(crs).axis_info[0].unit_conversion_factor
    across, up = 0.3, -0.2  # rise per meter of the projection
    turn = np.radians(factors.meridian_convergence)
    east = (across * np.cos(turn) + up * np.sin(turn)) * factors.parallel_scale
    north = (up * np.cos(turn) - across * np.sin(turn)) * factors.meridional_scale
    heights = (across * (x - x.mean()) + up * (y - y.mean())) * unit
    steepness = np.hypot(east, north)
    assert computed("slope", heights, grid=grid) == pytest.approx(np.degrees(np.arctan(steepness)), abs=1e-3)
    upright = np.sqrt(1 + steepness**2)
    assert computed("eastness", heights, grid=grid) == pytest.approx(-east / upright, abs=2e-5)
    assert computed("northness", heights, grid=grid) == pytest.approx(-north / upright, abs=2e-5)


#: Equatorial radius of WGS 84.
RADIUS = 6378137.0


def curvature(latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The radii of curvature of WGS 84 across and along the meridian, at a latitude in radians."""
    flat = 1 / 298.257223563
    squared = flat * (2 - flat)
    lost = 1 - squared * np.sin(latitude) ** 2
    return RADIUS / np.sqrt(lost), RADIUS * (1 - squared) / lost**1.5


def horn(heights: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Horn's formula in the inner pixels, with pixels of this many meters."""
    a, b, c, d, _, f, g, h, i = (
        heights[1 + y : heights.shape[0] - 1 + y, 1 + x : heights.shape[1] - 1 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)
    )
    across, up = ((c + 2 * f + i) - (a + 2 * d + g)) / (8 * width), ((a + 2 * b + c) - (g + 2 * h + i)) / (8 * height)
    return np.asarray(np.degrees(np.arctan(np.hypot(across, up))))


@pytest.mark.parametrize("latitude", [0.0, 37.5, -65.0, 89.9])
def test_pixels_in_degrees_are_measured_on_the_ellipsoid(latitude: float) -> None:
    pixel = 1 / 3600
    grid = GeoBox(SHAPE, Affine(pixel, 0, 179.995, 0, -pixel, latitude), "EPSG:4326")  # across the antimeridian
    phi = np.radians(positions(grid)[1][1:-1, 1:-1])
    across, along = curvature(phi)
    wanted = horn(HEIGHTS, np.radians(pixel) * across * np.cos(phi), np.radians(pixel) * along)
    assert computed("slope", grid=grid)[1:-1, 1:-1] == pytest.approx(wanted, abs=1e-3)


def test_web_mercators_stretched_pixels_are_measured_on_the_ellipsoid() -> None:
    grid = GeoBox(SHAPE, Affine(10, 0, 1_400_000, 0, -10, 8_400_000), "EPSG:3857")
    phi = np.arctan(np.sinh(positions(grid)[1][1:-1, 1:-1] / RADIUS))  # of a sphere, by definition
    across, along = curvature(phi)
    wanted = horn(HEIGHTS, 10 * np.cos(phi) * across / RADIUS, 10 * np.cos(phi) * along / RADIUS)
    assert computed("slope", grid=grid)[1:-1, 1:-1] == pytest.approx(wanted, abs=1e-3)


def test_a_grid_may_end_at_the_poles() -> None:
    grid = GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
    found = computed("slope", np.full(grid.shape, 8.0), grid=grid, at=Window(0, 0, 180, 360))
    assert (found == 0).all()


def test_neighbors_without_data_are_left_out_of_the_plane() -> None:
    """Of those that have data, weighted least squares through the pixel's own height."""
    valid = np.random.default_rng(1).random(SHAPE) < 0.4
    found = computed("slope", valid=valid)
    assert np.isnan(found[~valid]).all()
    size, wanted = 10 / 0.9996, np.full(SHAPE, np.nan)
    for row, column in np.argwhere(valid):
        own = [(y, x) for y, x in NEIGHBORS if 0 <= row + y < SHAPE[0] and 0 <= column + x < SHAPE[1]]
        own = [(y, x) for y, x in own if valid[row + y, column + x]]
        weight = np.sqrt([2.0 if 0 in each else 1.0 for each in own])
        matrix = np.array(own, float).reshape(-1, 2) * weight[:, None]
        if own and np.linalg.matrix_rank(matrix) == 2:
            rises = np.array([HEIGHTS[row + y, column + x] - HEIGHTS[row, column] for y, x in own])
            plane = np.linalg.lstsq(matrix, rises * weight, rcond=None)[0]
            wanted[row, column] = np.degrees(np.arctan(np.hypot(*plane) / size))
    assert 50 < np.isnan(wanted[valid]).sum() < valid.sum() / 2
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_planes_are_exact_at_edges_and_beside_gaps(share: float) -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    valid = np.random.default_rng(2).random(SHAPE) < share
    found = computed("slope", 3.0 * x - 4.0 * y, valid=valid)
    there = np.isfinite(found)
    assert there.all() if share == 1 else 500 < there.sum() < valid.sum()
    assert found[there] == pytest.approx(np.degrees(np.arctan(0.5 * 0.9996)), abs=1e-4)


def test_pixels_with_neighbors_on_one_line_have_no_slope() -> None:
    valid = np.zeros(SHAPE, bool)
    valid[5, :] = valid[20:26, 8] = valid[np.arange(30, 36), np.arange(30, 36)] = valid[12, 12] = True
    assert np.isnan(computed("slope", valid=valid)).all()


@pytest.mark.parametrize("function", ["slope", "northness", "eastness"])
def test_a_window_with_a_halo_equals_the_same_part_of_the_whole(function: str) -> None:
    rows, columns = 150, 40
    grid = GeoBox((rows, columns), Affine(10, 2, 499_750, 3, -9, 4_000_200), "EPSG:32612")
    drawn = np.random.default_rng(3)
    heights, valid = drawn.normal(size=(rows, columns)), drawn.random((rows, columns)) < 0.9
    whole = computed(function, heights, grid=grid, valid=valid, at=Window(0, 0, rows, columns))
    for top, left, bottom, right in ((0, 0, 9, 11), (37, 5, 121, 38), (100, 30, 150, 40), (63, 1, 65, 3)):
        own = np.s_[top:bottom, left:right]
        at = Window(top, left, bottom - top, right - left)
        part = computed(function, heights[own], grid=grid, valid=valid[own], at=at)
        inner = np.s_[1 : bottom - top - 1, 1 : right - left - 1]
        assert part[inner].tobytes() == whole[own][inner].tobytes()


def test_flat_ground_faces_nowhere_and_functions_take_part_in_arithmetic() -> None:
    flat = np.full(SHAPE, 500.0)
    assert not computed("eastness", flat).any()
    values, finite = derived_band(
        parse("slope(height * 0.3048) / 90 + 0 * height", NAMES), {"height": HEIGHTS}, Terrain(UTM, WHOLE, flat > 0)
    )
    assert finite.all()
    assert values == pytest.approx(computed("slope", HEIGHTS * 0.3048) / 90, abs=1e-6)


@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["site",UNIT["metre",1]]'])
def test_grids_without_a_place_on_the_ground_are_refused(crs: str | None) -> None:
    with pytest.raises(InputError, match=r"source 'dem': slope, northness, eastness in `derive` need pixel sizes in meters"):
        check_ground("dem", GeoBox(SHAPE, UTM.affine, crs))
