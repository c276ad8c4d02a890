"""Vector labels at 180 degrees and at 0 to 360, and in geometry collections, label the right pixels."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.scenes.labels import Labels, VectorLabels, open_labels

CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"))
ROWS, COLUMNS = 24, 90
GRIDS = {
    "UTM 60": GeoBox((ROWS, COLUMNS), Affine(700, 0, 803000, 0, -700, 8400), "EPSG:32660"),
    "Mercator 150": GeoBox((ROWS, COLUMNS), Affine(700, 0, 3308000, 0, -700, 8400), "EPSG:3832"),
    "Web Mercator": GeoBox((ROWS, COLUMNS), Affine(1100, 0, 19987000, 0, -1100, 13200), "EPSG:3857"),
    "180": GeoBox((ROWS, COLUMNS), Affine(0.01, 0, 179.533, 0, -0.01, 0.123), "EPSG:4326"),
    "-180": GeoBox((ROWS, COLUMNS), Affine(0.01, 0, -180.467, 0, -0.01, 0.123), "EPSG:4326"),
}
#: A diamond around 180 degrees, longitudes continuous from 0 to 360.
DIAMOND = shapely.Polygon([(179.7, 0), (180, 0.08), (180.3, 0), (180, -0.08)])


def cut(shape: shapely.Polygon) -> shapely.MultiPolygon:
    """The shape cut at 180 degrees, as RFC 7946 asks."""
    east = shape.intersection(shapely.box(0, -90, 180, 90))
    west = shapely.transform(shape.intersection(shapely.box(180, -90, 360, 90)), lambda p: p - (360, 0))
    return shapely.MultiPolygon([east, west])


SHAPES = {
    "beyond 180": DIAMOND,
    "beyond -180": shapely.transform(DIAMOND, lambda points: points - (360, 0)),
    "cut": cut(DIAMOND),
    "0 to 360": shapely.transform(DIAMOND, lambda points: points - (-360, 0)),
}


def ids(path: Path, grid: GeoBox, **options: bool) -> np.ndarray:
    labels = open_labels(Labels(str(path), attribute="kind", **options), grid, CLASSES)
    return labels.read(Window(0, 0, *grid.shape))


def inside(grid: GeoBox) -> np.ndarray:
    """Where pixel centres, in longitudes from 0 to 360, are inside the diamond."""
    x, y = grid.affine * np.array(np.meshgrid(np.arange(COLUMNS) + 0.5, np.arange(ROWS) + 0.5))
    longitude, latitude = pyproj.Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True).transform(x, y)
    return shapely.contains_xy(DIAMOND, longitude % 360, latitude)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "suffix"), list(zip(GRIDS, [".gpkg", ".geojson", ".parquet", ".gpkg", ".geojson"], strict=True))
)
def test_polygon_at_180_degrees_labels_both_sides(tmp_path: Path, name: str, shape: str, suffix: str) -> None:
    grid = GRIDS[name]
    dense = shapely.segmentize(SHAPES[shape], 0.01)
    frame = geopandas.GeoDataFrame({"kind": ["water", "forest"]}, geometry=[dense, shapely.Point(0, 50)], crs="EPSG:4326")
    path = tmp_path / f"p{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    wanted = inside(grid)
    assert wanted.sum() > 200
    np.testing.assert_array_equal(ids(path, grid), np.where(wanted, 1, UNLABELLED))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_projected_polygon_across_180_degrees_stays_in_one_piece(tmp_path: Path, grid: GeoBox) -> None:
    project = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32660", always_xy=True).transform
    dense = shapely.transform(shapely.segmentize(DIAMOND, 0.01), lambda p: np.column_stack(project(p[:, 0], p[:, 1])))
    geopandas.GeoDataFrame({"kind": [1]}, geometry=[dense], crs="EPSG:32660").to_file(tmp_path / "p.gpkg")
    np.testing.assert_array_equal(ids(tmp_path / "p.gpkg", grid), np.where(inside(grid), 1, UNLABELLED))


def test_world_polygon_and_points_on_both_sides_label_a_grid_at_180_degrees(tmp_path: Path) -> None:
    points = [(179.6, 0.05), (-179.6, 0.05), (180.2, -0.05)]
    frame = geopandas.GeoDataFrame(
        {"kind": [1, 2, 2, 2]},
        geometry=[shapely.box(-180, -80, 180, 80), *map(shapely.Point, points)],
        crs="EPSG:4326",
    )
    frame.to_file(tmp_path / "p.gpkg")
    for name, left in (("180", 179.533), ("-180", -180.467)):
        wanted = np.ones((ROWS, COLUMNS), np.uint8)
        for x, y in points:
            wanted[int((0.123 - y) / 0.01), int(((x - left) % 360) / 0.01)] = 2
        np.testing.assert_array_equal(ids(tmp_path / "p.gpkg", GRIDS[name]), wanted)


@pytest.mark.parametrize("crs", ["EPSG:32660", "EPSG:32633", "EPSG:3031"])
def test_polygon_around_the_world_covers_a_projected_grid(tmp_path: Path, crs: str) -> None:
    grid = GeoBox((20, 20), Affine(10000, 0, 700000, 0, -10000, 500000), crs)
    frame = geopandas.GeoDataFrame({"kind": [1]}, geometry=[shapely.box(-180, -90, 180, 90)], crs="EPSG:4326")
    frame.to_file(tmp_path / "p.gpkg")
    assert (ids(tmp_path / "p.gpkg", grid) == 1).all()


def test_polygons_and_points_in_collections_are_labels(tmp_path: Path) -> None:
    grid = GeoBox((20, 20), Affine(10, 0, 400000, 0, -10, 5800000), "EPSG:32633")
    square = shapely.box(400010, 5799950, 400050, 5799990)
    nested = shapely.GeometryCollection(
        [
            square,
            shapely.GeometryCollection([shapely.Point(400105, 5799895), shapely.box(400150, 5799800, 400200, 5799850)]),
            shapely.LineString([(400000, 5799800), (400200, 5800000)]),
        ]
    )
    overlaid = shapely.box(400030, 5799970, 400070, 5799990)
    frame = geopandas.GeoDataFrame({"kind": ["water", "forest"]}, geometry=[nested, overlaid], crs="EPSG:32633")
    frame.to_file(tmp_path / "p.gpkg")
    wanted = np.full((20, 20), UNLABELLED, np.uint8)
    wanted[1:5, 1:5] = wanted[15:, 15:] = wanted[10, 10] = 1
    wanted[1:3, 3:7] = 2
    np.testing.assert_array_equal(ids(tmp_path / "p.gpkg", grid), wanted)
    opened = open_labels(Labels(str(tmp_path / "p.gpkg"), attribute="kind"), grid, CLASSES)
    assert isinstance(opened, VectorLabels)
    assert "neither polygons nor points (LineString), skipped: 1" in opened.notes[0]
