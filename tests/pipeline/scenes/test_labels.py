"""Raster and vector labels become class ids on the reference grid; invalid files are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.codes import UNLABELLED
from pipeline.grid import Window, windows
from pipeline.scenes.labels import Labels, open_labels, refuse_unknown
from tests.support.scenes import CRS, TRANSFORM, write_polygons, write_raster

GRID = GeoBox((60, 50), TRANSFORM, CRS)

CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"))


def ids_of(labels: Labels) -> np.ndarray:
    opened = open_labels(labels, GRID, CLASSES)
    whole = np.zeros(tuple(GRID.shape), np.uint8)
    for window in windows((60, 50), 32):
        refuse_unknown(labels.url, {f"{v:g}": n for v, n in opened.unknown(window).items()}, CLASSES)
        whole[window.slices] = opened.read(window)
    return whole


def test_raster_labels_keep_their_ids(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, (1, 60, 50)).astype(np.uint8)
    path = write_raster(tmp_path / "l.tif", values)
    found = ids_of(Labels(str(path), ignore=(0,)))
    assert (found == np.where(values[0] == 0, UNLABELLED, values[0])).all()
    assert (ids_of(Labels(str(path), nodata=0)) == found).all()


def test_undeclared_label_value_is_refused_with_its_count(tmp_path: Path) -> None:
    values = np.ones((1, 60, 50), np.uint8)
    values[0, 0, :3] = 9
    path = write_raster(tmp_path / "l.tif", values)
    with pytest.raises(InputError, match=r"l\.tif.*9 \(3\).*1 \(water\), 2 \(forest\)"):
        ids_of(Labels(str(path)))


def square(row: int, column: int, side: int) -> shapely.Polygon:
    left, top = TRANSFORM * (column, row)
    return shapely.box(left, top - 10 * side, left + 10 * side, top)


def test_polygons_are_rasterized_by_class_name_in_file_order(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "p.gpkg", [(square(5, 5, 30), "water"), (square(20, 20, 25), "forest")])
    found = ids_of(Labels(str(path), attribute="kind"))
    wanted = np.full((60, 50), UNLABELLED)
    wanted[5:35, 5:35] = 1
    wanted[20:45, 20:45] = 2
    assert (found == wanted).all()


def test_polygons_in_another_crs_with_class_ids_are_rasterized(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "p.gpkg", [(square(5, 5, 30), 2)])
    geopandas.read_file(path).to_crs("EPSG:4326").to_file(tmp_path / "q.geojson")
    found = ids_of(Labels(str(tmp_path / "q.geojson"), attribute="kind"))
    assert (found[6:34, 6:34] == 2).all()
    assert abs(int((found == 2).sum()) - 900) < 40


def test_invalid_vector_labels_are_refused_by_name(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "p.gpkg", [(square(5, 5, 10), "water"), (square(30, 5, 10), "lava")])
    with pytest.raises(InputError, match=r"lava \(1\).*Declared classes: 1 .water., 2 .forest."):
        ids_of(Labels(str(path), attribute="kind"))
    assert (ids_of(Labels(str(path), attribute="kind", ignore=("lava",))) != UNLABELLED).sum() == 100
    numbers = write_polygons(tmp_path / "n.gpkg", [(square(5, 5, 10), "1"), (square(30, 5, 10), None)])
    assert (ids_of(Labels(str(numbers), attribute="kind")) == 1).sum() == 100, (
        "ids stored as text are accepted; a feature without an id is skipped"
    )
    with pytest.raises(InputError, match="no attribute 'sort'; it has kind"):
        ids_of(Labels(str(path), attribute="sort"))
    far = write_polygons(tmp_path / "far.gpkg", [(square(5000, 5, 10), "water")])
    with pytest.raises(InputError, match=r"no feature with a class is on.*y 5.7499e.*grid has EPSG:32633"):
        ids_of(Labels(str(far), attribute="kind"))
    bare = write_polygons(tmp_path / "bare.gpkg", [(square(5, 5, 10), "water")], crs=None)
    with pytest.raises(InputError, match=r"bare\.gpkg.*no CRS"):
        ids_of(Labels(str(bare), attribute="kind"))


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".parquet"])
def test_every_vector_format_is_rasterized_identically(tmp_path: Path, suffix: str) -> None:
    frame = geopandas.GeoDataFrame({"kind": ["water", "forest"]}, geometry=[square(5, 5, 30), square(20, 20, 25)], crs=CRS)
    path = tmp_path / f"p{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    wanted = np.full((60, 50), UNLABELLED)
    wanted[5:35, 5:35] = 1
    wanted[20:45, 20:45] = 2
    assert (ids_of(Labels(str(path), attribute="kind")) == wanted).all()


def test_points_label_the_pixel_that_contains_them(tmp_path: Path) -> None:
    places = [(3, 4), (31, 17), (59, 49)]
    points = [shapely.Point(TRANSFORM * (column + 0.3, row + 0.8)) for row, column in places]
    path = write_polygons(tmp_path / "p.gpkg", [(point, "forest") for point in points])
    found = ids_of(Labels(str(path), attribute="kind"))
    assert [tuple(p) for p in np.argwhere(found == 2).tolist()] == places
    assert (found != UNLABELLED).sum() == 3


@pytest.mark.parametrize("priority", [("water",), (1,), ("water", "forest")])
def test_priority_class_is_rasterized_on_top_regardless_of_file_order(tmp_path: Path, priority: tuple[Any, ...]) -> None:
    path = write_polygons(tmp_path / "p.gpkg", [(square(5, 5, 30), "water"), (square(20, 20, 25), "forest")])
    found = ids_of(Labels(str(path), attribute="kind", priority=priority))
    assert (found[5:35, 5:35] == 1).all()
    assert (found == 2).sum() == 25 * 25 - 15 * 15
    with pytest.raises(InputError, match=r"`labels\.priority` lists undeclared classes: lava"):
        ids_of(Labels(str(path), attribute="kind", priority=("lava",)))


def test_all_touched_labels_every_touched_pixel(tmp_path: Path) -> None:
    left, top = TRANSFORM * (10.4, 10.4)
    path = write_polygons(tmp_path / "p.gpkg", [(shapely.box(left, top - 20, left + 20, top), "water")])
    assert (ids_of(Labels(str(path), attribute="kind")) == 1).sum() == 4
    assert (ids_of(Labels(str(path), attribute="kind", all_touched=True)) == 1).sum() == 9


def test_self_intersecting_and_empty_geometries_are_handled_and_reported(tmp_path: Path) -> None:
    """A bow tie encloses two triangles; a feature without a geometry labels no pixels."""
    corners = [TRANSFORM * corner for corner in ((10, 10), (30, 30), (30, 10), (10, 30))]
    bow_tie = shapely.Polygon(corners)
    assert not bow_tie.is_valid
    frame = geopandas.GeoDataFrame(
        {"kind": ["water", "forest", "forest", None]},
        geometry=[bow_tie, shapely.Polygon(), None, square(40, 40, 5)],
        crs=CRS,
    )
    frame.to_parquet(tmp_path / "p.parquet")  # other formats are read by bounding box, which drops features without geometry
    opened = open_labels(Labels(str(tmp_path / "p.parquet"), attribute="kind"), GRID, CLASSES)
    ids = opened.read(Window(0, 0, 60, 50))
    assert abs(int((ids == 1).sum()) - 200) < 25
    assert ids[20, 12] == ids[20, 28] == 1
    assert ids[12, 20] == ids[28, 20] == UNLABELLED
    assert (ids == 2).sum() == 0
    notes = " ".join(opened.notes)
    assert "features without a usable geometry, skipped: 2" in notes
    assert "features with a self-intersecting outline, converted to the areas that it encloses: 1" in notes
    assert "features without a value of 'kind', skipped: 1" in notes


def test_spike_of_an_outline_labels_no_pixels(tmp_path: Path) -> None:
    corners = [TRANSFORM * c for c in ((10, 10), (20, 10), (20, 15), (45, 15), (20, 15), (20, 20), (10, 20))]
    path = write_polygons(tmp_path / "p.gpkg", [(shapely.Polygon(corners), "water")])
    assert (ids_of(Labels(str(path), attribute="kind")) == 1).sum() == 100


def test_file_with_several_layers_requires_a_layer_name(tmp_path: Path) -> None:
    path = tmp_path / "p.gpkg"
    for layer, kind in (("old", "water"), ("new", "forest")):
        frame = geopandas.GeoDataFrame({"kind": [kind]}, geometry=[square(5, 5, 10)], crs=CRS)
        frame.to_file(path, layer=layer)
    with pytest.raises(InputError, match=r"several layers; select one with `labels\.layer`: old, new"):
        ids_of(Labels(str(path), attribute="kind"))
    assert (ids_of(Labels(str(path), attribute="kind", layer="new")) == 2).sum() == 100


def test_features_at_the_curved_edge_of_a_wide_grid_are_kept(tmp_path: Path) -> None:
    """A grid edge that is straight in metres is an arc in degrees; a box of the corners alone would exclude features."""
    wide = GeoBox((20, 11_000), Affine(10, 0, 445_000, 0, -10, 5_800_000), CRS)
    points = geopandas.GeoDataFrame(
        {"kind": ["water"] * 50},
        geometry=[shapely.Point(445_000 + 110_000 * (i + 0.5) / 50, 5_799_995) for i in range(50)],
        crs=CRS,
    )
    points.to_crs("EPSG:4326").to_file(tmp_path / "p.gpkg")
    opened = open_labels(Labels(str(tmp_path / "p.gpkg"), attribute="kind"), wide, CLASSES)
    assert (opened.read(Window(0, 0, 20, 11_000)) == 1).sum() == 50


def test_non_integer_labels_and_multiband_label_rasters_are_refused(tmp_path: Path) -> None:
    values = np.ones((1, 60, 50), np.float32)
    values[0, 0, :2] = 1.5
    with pytest.raises(InputError, match=r"1\.5 \(2\)"):
        ids_of(Labels(str(write_raster(tmp_path / "l.tif", values))))
    with pytest.raises(InputError, match=r"has 2 bands; select the one with the class ids with `labels\.band`"):
        ids_of(Labels(str(write_raster(tmp_path / "m.tif", np.ones((2, 60, 50), np.uint8)))))


@pytest.mark.parametrize("shift", [0, 0.5])
def test_band_of_a_label_raster_is_selected_and_its_transparent_pixels_have_no_label(tmp_path: Path, shift: float) -> None:
    values = np.ones((3, 60, 50), np.uint8)
    values[1, :, 25:] = 2
    values[2] = np.arange(60)[:, None] // 20 * 100  # transparent in the upper third
    path = write_raster(tmp_path / "l.tif", values, transform=TRANSFORM * Affine.translation(shift, shift))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha)
    with pytest.raises(InputError, match=r"band 3 is tagged as transparency.*of labels: select another one with `band`"):
        ids_of(Labels(str(path)))
    found = ids_of(Labels(str(path), band=2))
    assert (found[:19] == UNLABELLED).all()
    wanted = values[1, 21:].copy()
    if shift:  # the first column is outside the file, and centres fall between two columns
        found, wanted = found[:, [10, 40]], wanted[:, [10, 40]]
    assert (found[21:] == wanted).all()


def test_class_whose_id_is_the_nodata_value_is_refused_until_nodata_is_stated(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (1, 60, 50)).astype(np.uint8)
    path = str(write_raster(tmp_path / "l.tif", values, nodata=0))
    classes = (ClassName(0, "soil", "#000000"), ClassName(1, "water", "#0000ff"))
    with pytest.raises(
        InputError, match=r"0 is both the id of class soil and the nodata value of the file.*`labels\.nodata`"
    ):
        open_labels(Labels(path), GRID, classes)
    with pytest.raises(InputError, match=r"0 is both the id of class soil and the nodata value in `labels\.nodata`"):
        open_labels(Labels(path, nodata=0), GRID, classes)
    found = open_labels(Labels(path, nodata=255), GRID, classes).read(Window(0, 0, 60, 50))
    assert (found == values[0]).all()


def test_raster_labels_on_another_grid_use_nearest_neighbour(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(1, 3, (1, 20, 17)).astype(np.uint8)
    path = write_raster(tmp_path / "l.tif", coarse, transform=TRANSFORM * Affine.scale(3))
    assert (ids_of(Labels(str(path))) == coarse[0].repeat(3, 0).repeat(3, 1)[:60, :50]).all()


def test_all_touched_labels_do_not_depend_on_the_window(tmp_path: Path) -> None:
    """Edges go through the corners of pixels: which of them GDAL takes depends on the rounding of coordinates."""
    rng = np.random.default_rng(0)
    shapes = [shapely.Polygon([TRANSFORM * tuple(map(float, c)) for c in rng.integers(5, 379, (3, 2))]) for _ in range(60)]
    path = write_polygons(
        tmp_path / "p.gpkg", [(shape.buffer(0), ("water", "forest")[i % 2]) for i, shape in enumerate(shapes)]
    )
    grid = GeoBox((384, 384), TRANSFORM, CRS)
    opened = open_labels(Labels(str(path), attribute="kind", all_touched=True), grid, CLASSES)
    whole = opened.read(Window(0, 0, 384, 384))
    assert (whole != UNLABELLED).mean() > 0.5
    for side in (97, 128, 256):
        for window in windows((384, 384), side):
            np.testing.assert_array_equal(opened.read(window), whole[window.slices])


def test_vector_labels_in_an_engineering_crs(tmp_path: Path) -> None:
    site = 'LOCAL_CS["site grid",UNIT["metre",1]]'
    grid = GeoBox((60, 50), TRANSFORM, site)
    path = write_polygons(tmp_path / "p.gpkg", [(square(5, 5, 30), "water")], crs=site)
    found = open_labels(Labels(str(path), attribute="kind"), grid, CLASSES).read(Window(0, 0, 60, 50))
    assert (found[5:35, 5:35] == 1).all()
    assert (found == 1).sum() == 900
    true = write_polygons(tmp_path / "q.gpkg", [(square(5, 5, 30), "water")])
    for labels, box in ((path, GRID), (true, grid)):
        with pytest.raises(InputError, match=f"{labels.name}: has the CRS .*cannot be transformed.*engineering"):
            open_labels(Labels(str(labels), attribute="kind"), box, CLASSES)
