"""Grids that follow from an area, against pyproj and gdalwarp."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info
from rasterio.warp import transform_bounds

from mibf.errors import InputError
from pipeline.areas.area import Area, box_area
from pipeline.areas.area_grid import covering, cropped, outline, outside_note, square_kilometers, zone, zone_note

#: A raster in another CRS than the grids below.
ELSEWHERE = GeoBox((10, 10), Affine(20, 0, 7, 0, -20, 7), "EPSG:3035")


@pytest.mark.parametrize(
    ("bbox", "crs"),
    [
        ((9.0, 45.0, 10.0, 46.0), "EPSG:32632"),
        ((-71.0, -34.0, -70.0, -33.0), "EPSG:32719"),
        ((179.0, -17.0, -178.0, -16.0), "EPSG:32701"),
        ((178.0, 60.0, -179.0, 61.0), "EPSG:32660"),
        ((10.0, -1.0, 11.0, 2.0), "EPSG:32632"),
        ((4.0, 60.0, 5.0, 61.0), "EPSG:32631"),
        ((0.0, 83.0, 10.0, 86.0), "EPSG:5041"),
        ((0.0, -82.0, 10.0, -80.0), "EPSG:5042"),
        ((-180.0, 85.0, 180.0, 90.0), "EPSG:5041"),
    ],
)
def test_zone_is_that_of_the_center(bbox: tuple[float, float, float, float], crs: str) -> None:
    assert zone(box_area(bbox)) == crs


@pytest.mark.parametrize("latitude", [-79.0, -1.0, 1.0, 83.0])
def test_zone_agrees_with_pyproj(latitude: float) -> None:
    for longitude in range(-177, 180, 51):
        own = AreaOfInterest(longitude, latitude, longitude, latitude)
        wanted = {info.code for info in query_utm_crs_info("WGS 84", own, contains=True)}
        box = (longitude - 0.4, latitude - 0.4, longitude + 0.4, latitude + 0.4)
        assert zone(box_area(box)).removeprefix("EPSG:") in wanted


def test_note_on_an_area_much_wider_than_a_zone() -> None:
    assert zone_note(box_area((9, 45, 17, 46)), "EPSG:32633") is None
    note = zone_note(box_area((9, 45, 21, 46)), "EPSG:32633")
    assert note is not None
    assert "is 12.0 degrees of longitude wide" in note
    assert zone_note(box_area((-180, 85, 180, 90)), "EPSG:5041") is None


@pytest.mark.parametrize("bbox", [(9.01, 45.02, 9.13, 45.11), (178.9, -17, -179.95, -16.8)])
def test_grid_is_on_multiples_of_the_resolution(bbox: tuple[float, float, float, float]) -> None:
    """As `gdalwarp -te ... -tap` computes it."""
    crs = zone(box_area(bbox))
    grid = covering(box_area(bbox), CRS(crs), 30.0, ELSEWHERE, scale=1)
    box = grid.boundingbox
    west, south, east, north = bbox
    bounds = transform_bounds("EPSG:4326", crs, west, south, east if west < east else east + 360, north, densify_pts=500)
    wanted = [np.floor(v / 30) * 30 for v in bounds[:2]] + [np.ceil(v / 30) * 30 for v in bounds[2:]]
    assert [box.left, box.bottom, box.right, box.top] == wanted
    assert grid.crs == crs
    assert abs(grid.affine.a) == abs(grid.affine.e) == 30


@pytest.mark.parametrize("scale", [1, 2])
def test_grid_is_on_the_pixels_of_a_raster_of_its_crs_and_resolution(scale: int) -> None:
    size = 10 / scale
    pixels = GeoBox((500, 500), Affine(size, 0, 499_983, 0, -size, 5_000_007), "EPSG:32632")
    grid = covering(box_area((9.01, 45.02, 9.03, 45.04)), CRS("EPSG:32632"), 10.0, pixels, scale=scale)
    assert ((grid.affine.c - 499_983) / 10).is_integer()
    assert ((grid.affine.f - 5_000_007) / 10).is_integer()
    other = covering(box_area((9.01, 45.02, 9.03, 45.04)), CRS("EPSG:32632"), 20.0, pixels, scale=scale)
    assert (other.affine.c / 20).is_integer()


def test_bounds_on_edges_of_pixels_add_no_pixels() -> None:
    """0.1 is no binary fraction."""
    grid = covering(box_area((0.1, 0.2, 0.7, 0.9)), CRS("EPSG:4326"), 0.1, ELSEWHERE, scale=1)
    assert grid.shape == (7, 6)
    assert grid.affine.c == pytest.approx(0.1)


def test_crop_is_that_of_gdalwarp() -> None:
    """The smallest window of whole pixels that holds the bounds of the area."""
    whole = GeoBox((400, 300), Affine(10, 0, 499_983, 0, -10, 4_990_007), "EPSG:32632")
    bbox = (9.005, 45.04, 9.02, 45.05)
    found = cropped(whole, box_area(bbox))
    left, bottom, right, top = transform_bounds("EPSG:4326", "EPSG:32632", *bbox, densify_pts=500)
    box = found.boundingbox
    assert 0 <= left - box.left < 10
    assert 0 <= box.right - right < 10
    assert 0 <= bottom - box.bottom < 10
    assert 0 <= box.top - top < 10
    assert (((box.left - 499_983) / 10).is_integer(), ((box.top - 4_990_007) / 10).is_integer()) == (True, True)


def test_crop_ends_with_the_grid_and_says_what_is_outside() -> None:
    whole = GeoBox((100, 100), Affine(0.01, 0, 9, 0, -0.01, 46), "EPSG:4326")
    area = box_area((8.5, 45.5, 9.5, 46.5))
    found = cropped(whole, area)
    assert found.shape == (50, 50)
    assert found.affine == whole.affine
    assert (
        outside_note(area, found, area.mask(found))
        == "area [8.5, 45.5, 9.5, 46.5]: 75.0% of it is outside the reference grid"
    )
    inside = box_area((9.1, 45.5, 9.2, 45.6))
    assert outside_note(inside, cropped(whole, inside), inside.mask(cropped(whole, inside))) is None


def test_crop_of_a_rotated_grid() -> None:
    turned = Affine(10, 0, 500_000, 0, -10, 4_990_000) * Affine.rotation(30)
    whole = GeoBox((400, 400), turned, "EPSG:32632")
    area = box_area((9.005, 45.03, 9.01, 45.035))
    found = cropped(whole, area)
    assert found.shape[0] < 400
    assert found.shape[1] < 400
    assert int(area.mask(found).pixels) == int(area.mask(whole).pixels)


@pytest.mark.parametrize("left", [-180.0, 0.0, 179.0])
def test_crop_across_the_antimeridian(left: float) -> None:
    """A grid around the Earth continues at its other end."""
    columns = 20 if left == 179.0 else 3600
    whole = GeoBox((20, columns), Affine(0.1, 0, left, 0, -0.1, 1), "EPSG:4326")
    found = cropped(whole, box_area((179.5, -0.5, -179.6, 0.5)))
    assert found.shape == (10, 9)
    assert (found.affine.c - 179.5) % 360 == pytest.approx(0, abs=1e-6) or (found.affine.c - 179.5) % 360 > 359.9


def test_crop_on_one_side_of_the_antimeridian() -> None:
    """A grid that ends there, at a resolution that does not divide a turn, has one side only."""
    whole = GeoBox((20, 1000), Affine(0.07, 0, -180, 0, -0.07, 0.7), "EPSG:4326")
    area = box_area((179.3, -0.35, -178.6, 0.35))
    found = cropped(whole, area)
    assert found.shape == (10, 20)
    note = outside_note(area, found, area.mask(found))
    assert note is not None
    assert "33.3% of it is outside" in note


def test_area_elsewhere_is_refused_with_both_extents() -> None:
    whole = GeoBox((100, 100), Affine(0.01, 0, 9, 0, -0.01, 46), "EPSG:4326")
    with pytest.raises(InputError, match=r"longitude 20 to 21, latitude 45 to 46 degrees; the grid spans longitude 9 to 10"):
        cropped(whole, box_area((20, 45, 21, 46)))
    zone_33 = GeoBox((10, 10), Affine(1000, 0, 500_000, 0, -1000, 5_000_000), "EPSG:32633")
    with pytest.raises(InputError, match=r"does not overlap the reference grid. It spans longitude -120 to -20"):
        cropped(zone_33, box_area((-120, -60, -20, 80)))  # wide, so nothing of it is left near the grid


def test_area_that_a_crs_does_not_define_is_refused() -> None:
    globe = CRS("+proj=ortho +lat_0=0 +lon_0=0 +datum=WGS84")
    with pytest.raises(InputError, match=r"cannot be transformed to .*it spans longitude 150 to 160, latitude 0 to 10 deg"):
        covering(box_area((150, 0, 160, 10)), globe, 1000.0, ELSEWHERE, scale=1)


def test_area_far_wider_than_the_grid_is_cut_near_it() -> None:
    """The corners of a continent are not defined in a UTM zone."""
    grid = GeoBox((20, 20), Affine(1000, 0, 500_000, 0, -1000, 5_000_000), "EPSG:32632")
    area = box_area((-120, -60, 130, 80))
    assert cropped(grid, area).shape == (20, 20)
    assert area.mask(grid).pixels == 400


@pytest.mark.parametrize(
    ("bbox", "crs", "resolution"),
    [
        ((9, 45, 10, 46), "EPSG:32632", 100.0),
        ((9, 45, 49, 65), "EPSG:4326", 0.1),
        ((178, -17, -178, -16), "EPSG:32601", 100.0),
    ],
)
def test_size_of_an_area_is_that_on_the_ellipsoid(
    bbox: tuple[float, float, float, float], crs: str, resolution: float
) -> None:
    """Between two parallels and meridians, in closed form (Snyder, Map Projections, 3-12 and 14-18)."""
    area = box_area(bbox)
    mask = area.mask(covering(area, CRS(crs), resolution, ELSEWHERE, scale=1))
    ellipsoid = pyproj.Geod(ellps="WGS84")
    e = np.sqrt(ellipsoid.es)

    def zone_area(latitude: float) -> float:
        s = np.sin(np.radians(latitude))
        return float(s / (1 - ellipsoid.es * s**2) + np.log((1 + e * s) / (1 - e * s)) / (2 * e))

    west, south, east, north = bbox
    width = np.radians((east - west) % 360)
    wanted = ellipsoid.b**2 / 2 * width * (zone_area(north) - zone_area(south)) / 1e6
    assert square_kilometers(mask) == pytest.approx(wanted, rel=1e-3)


def test_size_of_the_earth() -> None:
    area = box_area((-180, -90, 180, 90))
    mask = area.mask(covering(area, CRS("EPSG:4326"), 1.0, ELSEWHERE, scale=1))
    assert square_kilometers(mask) == pytest.approx(510_065_622, rel=1e-6)


def test_outline_is_the_area_within_half_a_pixel() -> None:
    """A star of 20 points and a hole, of which the grid has the western half."""
    angles = np.linspace(0, 2 * np.pi, 41)[:-1]
    reach = np.where(np.arange(40) % 2, 0.05, 0.1)[:, None]
    star = shapely.Polygon([9.5, 45.5] + reach * np.column_stack([np.cos(angles), np.sin(angles)]))
    star = star.difference(shapely.Point(9.48, 45.5).buffer(0.01))
    area = Area("star", star, pyproj.CRS("EPSG:4326"))
    whole = covering(area, CRS("EPSG:4326"), 0.0005, ELSEWHERE, scale=1)
    for grid in (whole, whole[:, : whole.shape[1] // 2]):
        found = shapely.geometry.shape(outline(area.mask(grid)))
        wanted = star.intersection(shapely.box(*grid.boundingbox))
        assert shapely.hausdorff_distance(found.boundary, wanted.boundary, densify=0.1) < 0.0005
        assert found.symmetric_difference(wanted).area < 0.01 * wanted.area
        assert len(shapely.get_parts(shapely.get_rings(found))) == len(shapely.get_parts(shapely.get_rings(wanted)))


def test_outline_has_a_limited_number_of_points() -> None:
    """A coast of 40,000 points."""
    angles = np.linspace(0, 2 * np.pi, 40_001)[:-1]
    reach = 1 + 0.002 * np.random.default_rng(0).random(40_000)[:, None]
    coast = shapely.Polygon([9.0, 45.0] + reach * np.column_stack([np.cos(angles), np.sin(angles)]))
    area = Area("coast", coast, pyproj.CRS("EPSG:4326"))
    found = shapely.geometry.shape(outline(area.mask(covering(area, CRS("EPSG:4326"), 0.0001, ELSEWHERE, scale=1))))
    assert found.is_valid
    assert shapely.get_num_coordinates(found) <= 2000
    assert found.symmetric_difference(coast).area < 0.01 * coast.area


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32601", "EPSG:32660"])
def test_outline_across_the_antimeridian_is_in_one_piece(crs: str) -> None:
    area = box_area((179.5, -17, -179.6, -16))
    resolution = 0.01 if crs == "EPSG:4326" else 1000.0
    found = shapely.geometry.shape(outline(area.mask(covering(area, CRS(crs), resolution, ELSEWHERE, scale=1))))
    assert found.geom_type == "Polygon"
    west, south, east, north = found.bounds
    assert east - west == pytest.approx(0.9, abs=0.01)
    assert (south, north) == pytest.approx((-17, -16), abs=0.01)


def test_area_around_a_pole_has_no_outline_in_degrees() -> None:
    cap = Area("cap", shapely.Point(2_000_000, 2_000_000).buffer(500_000), pyproj.CRS("EPSG:5041"))
    assert outline(cap.mask(covering(cap, CRS("EPSG:5041"), 10_000, ELSEWHERE, scale=1))) is None
