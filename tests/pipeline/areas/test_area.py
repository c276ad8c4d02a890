"""Areas against GDAL's rasterization, shapely and pyproj."""

from __future__ import annotations

import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import geometry_mask

from mibf.errors import InputError
from pipeline.areas.area import area_of_option, box_area, read_area
from pipeline.grid import Window, windows
from pipeline.rasters.longitude import Extent
from pipeline.scenes.coregistration import sample_windows, windows_with_data

UTM = "EPSG:32633"
#: 700 x 600 pixels of 10 m: several squares of the rasterization.
GRID = GeoBox((700, 600), Affine(10, 0, 400_000, 0, -10, 5_800_000), UTM)
ALL = Window(0, 0, 700, 600)


def star(points: int, *, hole: bool = True) -> shapely.Polygon:
    """A star with this many points in the middle of the grid, whose outline passes through no pixel center."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = 2000 + 700 * np.sin(7 * angle) + 30 * np.cos(131 * angle)
    ring = np.column_stack([403_000.3 + radius * np.cos(angle), 5_796_500.7 + radius * np.sin(angle)])
    inner = [403_000.3 + 400 * np.cos(angle[::-1]), 5_796_500.7 + 400 * np.sin(angle[::-1])]
    return shapely.Polygon(ring, [np.column_stack(inner)] if hole else None)


def write(path: Path, *geometries: shapely.Geometry, crs: str | None = UTM, **options: object) -> str:
    """Write geometries as a vector file in the format of its extension, and return its path."""
    frame = geopandas.GeoDataFrame({"n": range(len(geometries))}, geometry=list(geometries), crs=crs)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path, **options)
    return str(path)


def expected(geometry: shapely.Geometry, grid: GeoBox = GRID) -> np.ndarray:
    """What GDAL rasterizes of a geometry at once."""
    return geometry_mask([geometry], grid.shape, grid.affine, invert=True)


@pytest.mark.parametrize("points", [12, 400, 5000])
def test_pixels_inside_are_those_of_gdal_in_any_window(points: int, tmp_path: Path) -> None:
    mask = read_area(write(tmp_path / "area.gpkg", star(points))).mask(GRID)
    wanted = expected(star(points))
    assert 0 < wanted.sum() < wanted.size
    np.testing.assert_array_equal(mask.inside(ALL), wanted)
    assert mask.pixels == wanted.sum()
    for side in (97, 256, 300):
        for window in windows((700, 600), side):
            np.testing.assert_array_equal(mask.inside(window), wanted[window.slices])
            assert mask.count(window) == wanted[window.slices].sum()
            assert mask.touches(window) or not wanted[window.slices].any()


def test_outlines_with_many_points_are_cut_into_pieces(tmp_path: Path) -> None:
    """Every square would otherwise rasterize the whole outline."""
    mask = read_area(write(tmp_path / "area.gpkg", star(20_000, hole=False))).mask(GRID)
    assert len(mask.geometries) > 4
    assert shapely.area(mask.geometries).sum() == pytest.approx(star(20_000, hole=False).area)


@pytest.mark.parametrize("name", ["area.gpkg", "area.geojson", "area.parquet", "area.shp", "area.shp.zip", "area.zip"])
def test_every_vector_format_gives_the_same_pixels(name: str, tmp_path: Path) -> None:
    if name.endswith(".zip"):
        write(tmp_path / "area.shp", star(50))
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for part in ("shp", "shx", "dbf", "prj", "cpg"):
                archive.write(tmp_path / f"area.{part}", f"area.{part}")
        url = str(tmp_path / name)
    else:
        url = write(tmp_path / name, star(50))
    np.testing.assert_array_equal(read_area(url).mask(GRID).inside(ALL), expected(star(50)))


def test_layer_is_selected(tmp_path: Path) -> None:
    path = tmp_path / "area.gpkg"
    write(path, shapely.box(0, 0, 1, 1), layer="other")
    url = write(path, star(50), layer="valley")
    with pytest.raises(InputError, match=r"several layers; select one with `area.layer`: other, valley"):
        read_area(url)
    np.testing.assert_array_equal(read_area(url, "valley").mask(GRID).inside(ALL), expected(star(50)))


def test_sides_of_a_box_follow_parallels_and_meridians() -> None:
    """A side of 6 degrees in two points would be off by 3 km in UTM."""
    west, south, east, north = 12.0, 45.0, 18.0, 46.0
    grid = GeoBox((40, 250), Affine(2000, 0, 262_000, 0, -2000, 5_110_000), UTM)
    columns, rows = np.meshgrid(np.arange(250) + 0.5, np.arange(40) + 0.5)
    to_degrees = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(*(grid.affine * (columns, rows)))
    wanted = (west < longitude) & (longitude < east) & (south < latitude) & (latitude < north)
    assert wanted[:, 0].any() or wanted.any()
    np.testing.assert_array_equal(box_area((west, south, east, north)).mask(grid).inside(Window(0, 0, 40, 250)), wanted)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3035", "EPSG:3857", "EPSG:32632"])
def test_area_in_another_crs(crs: str, tmp_path: Path) -> None:
    """Its pixels are those whose centers, in the CRS of the area, are inside the polygon."""
    outline = shapely.transform(
        star(300, hole=False),
        lambda points: np.column_stack(pyproj.Transformer.from_crs(UTM, crs, always_xy=True).transform(*points.T)),
    )
    found = read_area(write(tmp_path / "area.gpkg", outline, crs=crs)).mask(GRID).inside(ALL)
    columns, rows = np.meshgrid(np.arange(600) + 0.5, np.arange(700) + 0.5)
    centers = pyproj.Transformer.from_crs(UTM, crs, always_xy=True).transform(*(GRID.affine * (columns, rows)))
    np.testing.assert_array_equal(found, shapely.contains_xy(outline, *centers))


@pytest.mark.parametrize(
    ("places", "extent"),
    [
        ([(179, 181)], (179, 181)),
        ([(179, 180), (-180, -179)], (179, 181)),
        ([(-180, -179), (179, 180)], (179, 181)),
        ([(-179, -178), (170, 172), (178, 179)], (170, 182)),
        ([(-10, 20), (30, 40)], (-10, 40)),
        ([(-180, 180)], (-180, 180)),
        ([(359, 361)], (359, 361)),
    ],
)
def test_parts_on_both_sides_of_the_antimeridian_are_one_piece(
    places: list[tuple[float, float]], extent: tuple[float, float], tmp_path: Path
) -> None:
    parts = [shapely.box(west, 10, east, 11) for west, east in places]
    area = read_area(write(tmp_path / "area.geojson", shapely.union_all(parts), crs="EPSG:4326"))
    assert (area.extent.left, area.extent.right) == extent
    assert area.geometry.area == pytest.approx(sum(east - west for west, east in places))


@pytest.mark.parametrize("start", [-180.0, 179.0, 0.0])
@pytest.mark.parametrize("bbox", [(179.5, -17, -179.5, -16), (-180, -17, -179.5, -16)])
def test_pixels_across_the_antimeridian(start: float, bbox: tuple[float, float, float, float]) -> None:
    """The grid may say -180, 180 or 359 degrees."""
    area = box_area(bbox)
    columns = 720 if start == 0.0 else 40
    grid = GeoBox((30, columns), Affine(0.5 if start == 0.0 else 0.05, 0, start, 0, -0.05, -15.9), "EPSG:4326")
    x = np.add(start, (np.arange(columns) + 0.5) * grid.affine.a)
    y = -15.9 - (np.arange(30) + 0.5) * 0.05
    west, east = area.extent.left, area.extent.right
    inside_x = np.logical_or.reduce([(west < x + turn) & (x + turn < east) for turn in (-360, 0, 360)])
    wanted = ((y > -17) & (y < -16))[:, None] & inside_x
    if not wanted.any():
        with pytest.raises(InputError, match="does not overlap the reference grid"):
            area.mask(grid)
        return
    np.testing.assert_array_equal(area.mask(grid).inside(Window(0, 0, 30, columns)), wanted)


def test_box_around_a_pole() -> None:
    """Its sides along the antimeridian coincide; the pole is inside."""
    grid = GeoBox((60, 60), Affine(50_000, 0, 500_000, 0, -50_000, 3_500_000), "EPSG:5041")
    area = box_area((-180, 82, 180, 90))
    columns, rows = np.meshgrid(np.arange(60) + 0.5, np.arange(60) + 0.5)
    to_degrees = pyproj.Transformer.from_crs("EPSG:5041", "EPSG:4326", always_xy=True)
    latitude = to_degrees.transform(*(grid.affine * (columns, rows)))[1]
    np.testing.assert_array_equal(area.mask(grid).inside(Window(0, 0, 60, 60)), latitude > 82)


def test_extent_of_an_area_around_a_pole(tmp_path: Path) -> None:
    url = write(tmp_path / "area.gpkg", shapely.Point(2_000_000, 2_000_000).buffer(500_000), crs="EPSG:5041")
    extent = read_area(url).extent
    assert (extent.left, extent.right, extent.top) == (-180, 180, 90)
    project = pyproj.Transformer.from_crs("EPSG:5041", "EPSG:4326", always_xy=True).transform
    assert extent.bottom == pytest.approx(project(2_500_000, 2_000_000)[1], abs=0.01)
    grid = GeoBox((10, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326")
    with pytest.raises(InputError, match=r"cannot be transformed to 'WGS 84'.*; it contains a pole"):
        read_area(url).mask(grid)


def test_features_that_are_not_polygons_are_skipped_with_a_note(tmp_path: Path) -> None:
    line = shapely.LineString([(400_000, 5_800_000), (401_000, 5_799_000)])
    area = read_area(write(tmp_path / "area.gpkg", star(50), line))
    np.testing.assert_array_equal(area.mask(GRID).inside(ALL), expected(star(50)))
    assert [note.endswith("features that are not polygons, skipped: 1") for note in area.notes] == [True]


def test_sampled_windows_are_in_the_area(tmp_path: Path) -> None:
    """It is a quarter of the grid, in one corner."""
    corner = shapely.box(400_001, 5_796_001, 403_001, 5_799_999)
    mask = read_area(write(tmp_path / "area.gpkg", corner)).mask(GRID)
    found = windows_with_data(mask, (700, 600), 64, 9)
    assert len(set(found)) == 9
    assert all(mask.count(window) > 0.8 * 64 * 64 for window in found)
    assert max(window.y for window in found) - min(window.y for window in found) > 150
    strip = read_area(write(tmp_path / "strip.gpkg", shapely.box(400_001, 5_799_985, 400_500, 5_799_999))).mask(GRID)
    assert windows_with_data(strip, (700, 600), 64, 9)
    assert windows_with_data(None, (700, 600), 64, 9) == sample_windows((700, 600), 64, 9)


BOW_TIE = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize(
    ("geometries", "crs", "message"),
    [
        ([BOW_TIE], "EPSG:4326", r"area.gpkg: an outline crosses itself \(Self-intersection\[0.5 0.5\]\).*makevalid"),
        ([shapely.Point(0, 0)], "EPSG:4326", r"area.gpkg: has no polygon \(Point only\)"),
        ([shapely.Polygon()], "EPSG:4326", "area.gpkg: has no polygon; an area needs at least one"),
        ([star(50)], None, "area.gpkg: has no CRS .*ogr2ogr -a_srs"),
        ([shapely.box(0, 45, 1, 46.0), BOW_TIE], "EPSG:4326", "crosses itself"),
    ],
)
def test_unusable_areas_are_refused(
    geometries: list[shapely.Geometry], crs: str | None, message: str, tmp_path: Path
) -> None:
    url = write(tmp_path / "area.gpkg", *geometries, crs=crs)
    with pytest.raises(InputError, match=message):
        read_area(url)


def test_latitudes_beyond_a_pole_are_refused(tmp_path: Path) -> None:
    """Meters that are declared as degrees, or latitude before longitude."""
    area = read_area(write(tmp_path / "area.gpkg", shapely.box(10, 100, 11, 101), crs="EPSG:4326"))
    with pytest.raises(InputError, match="spans latitude 100 to 101, beyond a pole"):
        _ = area.extent


def test_coordinates_without_a_place_on_the_earth_are_refused(tmp_path: Path) -> None:
    """The globe of an orthographic projection has a radius of 6,378 km."""
    globe = "+proj=ortho +lat_0=0 +lon_0=0 +datum=WGS84"
    area = read_area(write(tmp_path / "area.gpkg", shapely.box(6_000_000, 0, 7_000_000, 100_000), crs=globe))
    with pytest.raises(
        InputError, match=r"area.gpkg: cannot be transformed to 'WGS 84', in which not all of it has a place"
    ):
        _ = area.extent


def test_raster_is_refused_as_an_area(tmp_path: Path) -> None:
    (tmp_path / "area.tif").write_bytes(b"II*\0")
    with pytest.raises(InputError, match=r"area.tif: cannot be read as a vector file"):
        read_area(str(tmp_path / "area.tif"))
    with pytest.raises(InputError, match=r"absent.gpkg: no such file"):
        read_area(str(tmp_path / "absent.gpkg"))


def test_meets_places_at_any_turn() -> None:
    area = box_area((179, 0, -179, 1))
    assert area.meets([Extent(-179.5, 0, -170, 1)])
    assert area.meets(None)
    assert not area.meets([Extent(170, 0, 178, 1)])


def test_area_of_an_option_names_it(tmp_path: Path) -> None:
    missing = tmp_path / "none.geojson"
    with pytest.raises(InputError, match=rf"^--area: {missing}: no such file; check the path\.$"):
        area_of_option(str(missing))
    layers = tmp_path / "layers.gpkg"
    for layer in ("north", "south"):
        geopandas.GeoDataFrame(geometry=[shapely.box(13, 52, 14, 53)], crs=4326).to_file(layers, layer=layer)
    with pytest.raises(InputError, match=r"^--area: .*layers; select one with `ogr2ogr NEW.gpkg FILE LAYER`: north"):
        area_of_option(str(layers))
