"""Sources come to the reference grid in windows; labels become ids; what cannot is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.bundle import ClassName
from mibf.errors import InputError
from pipeline.grid import Window, windows
from pipeline.labels import UNLABELLED, Labels, open_labels, refuse_unknown
from pipeline.raster import RasterFile
from pipeline.scene import OpenSource, Source, open_source, reference_grid
from pipeline.split import open_split_raster
from tests.conftest import CRS, TRANSFORM, write_polygons, write_raster

GRID = GeoBox((60, 50), TRANSFORM, CRS)
CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"))


def source_of(*paths: Path, nodata: float | None = None, **declared: object) -> Source:
    layers = tuple((RasterFile(str(path), nodata=nodata),) for path in paths)
    return Source("s", layers, **declared)  # type: ignore[arg-type]  # any of its fields


def read(opened: OpenSource, *, side: int = 64) -> np.ndarray:
    """All of a source, by windows of `side` pixels; NaN where there is no data."""
    rows, columns = opened.grid.shape
    whole = np.full((opened.bands, rows, columns), np.nan, np.float32)
    for window in windows((rows // opened.scale, columns // opened.scale), side):
        values, valid = opened.read(window)
        s = opened.scale
        cut = tuple(slice(part.start * s, part.stop * s) for part in window.slices)
        whole[:, *cut] = np.where(valid, values, np.nan)
    return whole


def values_of(path: Path, *, side: int = 64, grid: GeoBox = GRID, **declared: Any) -> np.ndarray:
    return read(open_source(source_of(path, **declared), grid), side=side)


def test_a_source_on_the_grid_is_read_as_it_is_and_stored_in_its_own_type(tmp_path: Path) -> None:
    values = np.arange(2 * 60 * 50, dtype=np.uint16).reshape(2, 60, 50)
    values[0, 3, 4] = 9999
    path = write_raster(tmp_path / "a.tif", values, nodata=9999)
    opened = open_source(source_of(path), GRID)
    assert opened.dtype == np.uint16
    assert opened.layers[0][0].alignment.kind == "exact"
    found = read(opened, side=32)
    assert np.isnan(found[:, 3, 4]).all(), "no data in one band is none in any"
    found[:, 3, 4] = values[:, 3, 4]
    assert (found == values).all()


def test_bands_of_several_files_stand_in_the_order_given(tmp_path: Path) -> None:
    paths = [write_raster(tmp_path / f"{n}.tif", np.full((1, 60, 50), n, np.uint8)) for n in (7, 3)]
    opened = open_source(source_of(*paths), GRID)
    assert read(opened)[:, 0, 0].tolist() == [7, 3]


def test_where_a_source_ends_there_is_no_data_even_without_a_nodata_value(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "part.tif", np.full((1, 20, 20), 5, np.uint8))
    found = values_of(path)[0]
    assert (found[:20, :20] == 5).all()
    assert np.isnan(found[20:]).all()
    assert np.isnan(found[:, 20:]).all()


def test_declared_nodata_holds_on_and_off_the_grid_and_without_a_crs(tmp_path: Path) -> None:
    values = np.full((1, 60, 50), 4, np.int16)
    values[0, :10] = -99
    placed = write_raster(tmp_path / "placed.tif", values)
    assert np.isnan(values_of(placed, nodata=-99)[0, :10]).all()
    image = GeoBox((60, 50), Affine.identity(), None)
    bare = write_raster(tmp_path / "bare.tif", values, transform=Affine.identity(), crs=None)
    found = values_of(bare, nodata=-99, grid=image)
    assert np.isnan(found[0, :10]).all()
    assert (found[0, 10:] == 4).all()
    assert reference_grid(source_of(bare)).crs is None


def test_what_cannot_be_placed_is_refused(tmp_path: Path) -> None:
    ones = np.ones((1, 60, 50), np.uint8)
    far = write_raster(tmp_path / "far.tif", ones, transform=TRANSFORM * Affine.translation(500, 0))
    with pytest.raises(InputError, match=r"far\.tif.*does not overlap"):
        values_of(far)
    bare = write_raster(tmp_path / "bare.tif", ones[:, :30], crs=None)
    with pytest.raises(InputError, match=r"bare\.tif.*no CRS"):
        values_of(bare)
    with pytest.raises(InputError, match=r"none\.tif.*no such file"):
        values_of(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(InputError, match=r"text\.tif.*cannot be read"):
        values_of(tmp_path / "text.tif")


def test_a_raster_of_the_world_and_one_with_south_on_top_are_taken(tmp_path: Path) -> None:
    world = write_raster(
        tmp_path / "world.tif", np.full((1, 180, 360), 3, np.uint8), transform=Affine(1, 0, -180, 0, -1, 90), crs="EPSG:4326"
    )
    assert (values_of(world) == 3).all()
    values = np.arange(60 * 50, dtype=np.uint16).reshape(1, 60, 50)
    flipped = TRANSFORM * Affine.translation(0, 60) * Affine.scale(1, -1)
    south_up = write_raster(tmp_path / "south.tif", values[:, ::-1], transform=flipped)
    assert (values_of(south_up, resampling="nearest") == values).all()


def test_a_rotated_source_is_brought_to_the_grid(tmp_path: Path) -> None:
    turned = TRANSFORM * Affine.translation(25, 30) * Affine.rotation(30) * Affine.translation(-60, -60)
    path = write_raster(tmp_path / "turned.tif", np.full((1, 120, 120), 8, np.uint8), transform=turned)
    assert (values_of(path) == 8).all()


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


def test_a_label_that_no_class_declares_is_refused_with_its_count(tmp_path: Path) -> None:
    values = np.ones((1, 60, 50), np.uint8)
    values[0, 0, :3] = 9
    path = write_raster(tmp_path / "l.tif", values)
    with pytest.raises(InputError, match=r"l\.tif.*9 \(3\).*1 \(water\), 2 \(forest\)"):
        ids_of(Labels(str(path)))


def square(row: int, column: int, side: int) -> shapely.Polygon:
    left, top = TRANSFORM * (column, row)
    return shapely.box(left, top - 10 * side, left + 10 * side, top)


def test_polygons_are_burnt_by_name_the_later_on_top(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "p.gpkg", [(square(5, 5, 30), "water"), (square(20, 20, 25), "forest")])
    found = ids_of(Labels(str(path), attribute="kind"))
    wanted = np.full((60, 50), UNLABELLED)
    wanted[5:35, 5:35] = 1
    wanted[20:45, 20:45] = 2
    assert (found == wanted).all()


def test_polygons_in_another_crs_and_with_ids(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "p.gpkg", [(square(5, 5, 30), 2)])
    geopandas.read_file(path).to_crs("EPSG:4326").to_file(tmp_path / "q.geojson")
    found = ids_of(Labels(str(tmp_path / "q.geojson"), attribute="kind"))
    assert (found[6:34, 6:34] == 2).all()
    assert abs(int((found == 2).sum()) - 900) < 40


def test_vector_labels_are_refused_by_name(tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "p.gpkg", [(square(5, 5, 10), "water"), (square(30, 5, 10), "lava")])
    with pytest.raises(InputError, match=r"lava \(1\).*Declared are 1 .water., 2 .forest."):
        ids_of(Labels(str(path), attribute="kind"))
    assert (ids_of(Labels(str(path), attribute="kind", ignore=("lava",))) != UNLABELLED).sum() == 100
    numbers = write_polygons(tmp_path / "n.gpkg", [(square(5, 5, 10), "1"), (square(30, 5, 10), None)])
    assert (ids_of(Labels(str(numbers), attribute="kind")) == 1).sum() == 100, (
        "ids as text are ids; a feature without one is none"
    )
    with pytest.raises(InputError, match="no attribute 'sort'; it has kind"):
        ids_of(Labels(str(path), attribute="sort"))
    far = write_polygons(tmp_path / "far.gpkg", [(square(5000, 5, 10), "water")])
    with pytest.raises(InputError, match=r"no feature with a class lies on.*y 5.7499e.*grid has EPSG:32633"):
        ids_of(Labels(str(far), attribute="kind"))
    bare = write_polygons(tmp_path / "bare.gpkg", [(square(5, 5, 10), "water")], crs=None)
    with pytest.raises(InputError, match=r"bare\.gpkg.*no CRS"):
        ids_of(Labels(str(bare), attribute="kind"))


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".parquet"])
def test_every_kind_of_vector_file_is_burnt_alike(tmp_path: Path, suffix: str) -> None:
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


def test_points_label_the_pixel_that_they_lie_in(tmp_path: Path) -> None:
    places = [(3, 4), (31, 17), (59, 49)]
    points = [shapely.Point(TRANSFORM * (column + 0.3, row + 0.8)) for row, column in places]
    path = write_polygons(tmp_path / "p.gpkg", [(point, "forest") for point in points])
    found = ids_of(Labels(str(path), attribute="kind"))
    assert [tuple(p) for p in np.argwhere(found == 2).tolist()] == places
    assert (found != UNLABELLED).sum() == 3


@pytest.mark.parametrize("priority", [("water",), (1,), ("water", "forest")])
def test_a_class_of_priority_lies_on_top_wherever_it_stands_in_the_file(tmp_path: Path, priority: tuple[Any, ...]) -> None:
    path = write_polygons(tmp_path / "p.gpkg", [(square(5, 5, 30), "water"), (square(20, 20, 25), "forest")])
    found = ids_of(Labels(str(path), attribute="kind", priority=priority))
    assert (found[5:35, 5:35] == 1).all()
    assert (found == 2).sum() == 25 * 25 - 15 * 15
    with pytest.raises(InputError, match=r"`labels\.priority` names lava"):
        ids_of(Labels(str(path), attribute="kind", priority=("lava",)))


def test_touched_pixels_count_when_asked(tmp_path: Path) -> None:
    left, top = TRANSFORM * (10.4, 10.4)
    path = write_polygons(tmp_path / "p.gpkg", [(shapely.box(left, top - 20, left + 20, top), "water")])
    assert (ids_of(Labels(str(path), attribute="kind")) == 1).sum() == 4
    assert (ids_of(Labels(str(path), attribute="kind", all_touched=True)) == 1).sum() == 9


def test_outlines_that_cross_and_empty_ones_have_a_rule_and_are_told_of(tmp_path: Path) -> None:
    """A bow tie encloses two triangles; a feature without a geometry labels nothing."""
    corners = [TRANSFORM * corner for corner in ((10, 10), (30, 30), (30, 10), (10, 30))]
    bow_tie = shapely.Polygon(corners)
    assert not bow_tie.is_valid
    frame = geopandas.GeoDataFrame(
        {"kind": ["water", "forest", "forest", None]},
        geometry=[bow_tie, shapely.Polygon(), None, square(40, 40, 5)],
        crs=CRS,
    )
    frame.to_parquet(tmp_path / "p.parquet")  # other kinds are read by place, which features without one have not
    opened = open_labels(Labels(str(tmp_path / "p.parquet"), attribute="kind"), GRID, CLASSES)
    burnt = opened.read(Window(0, 0, 60, 50))
    assert abs(int((burnt == 1).sum()) - 200) < 25
    assert burnt[20, 12] == burnt[20, 28] == 1
    assert burnt[12, 20] == burnt[28, 20] == UNLABELLED
    assert (burnt == 2).sum() == 0
    told = " ".join(opened.notes)
    assert "2 without a geometry that can be placed, left out" in told
    assert "1 whose outline crosses itself" in told
    assert "1 without a value of 'kind', left out" in told


def test_a_spike_of_an_outline_labels_nothing(tmp_path: Path) -> None:
    corners = [TRANSFORM * c for c in ((10, 10), (20, 10), (20, 15), (45, 15), (20, 15), (20, 20), (10, 20))]
    path = write_polygons(tmp_path / "p.gpkg", [(shapely.Polygon(corners), "water")])
    assert (ids_of(Labels(str(path), attribute="kind")) == 1).sum() == 100


def test_several_layers_want_a_name(tmp_path: Path) -> None:
    path = tmp_path / "p.gpkg"
    for layer, kind in (("old", "water"), ("new", "forest")):
        frame = geopandas.GeoDataFrame({"kind": [kind]}, geometry=[square(5, 5, 10)], crs=CRS)
        frame.to_file(path, layer=layer)
    with pytest.raises(InputError, match=r"several layers; name one with `labels\.layer`: old, new"):
        ids_of(Labels(str(path), attribute="kind"))
    assert (ids_of(Labels(str(path), attribute="kind", layer="new")) == 2).sum() == 100


def test_features_at_the_bent_edge_of_a_wide_grid_are_kept(tmp_path: Path) -> None:
    """A side of the grid that is straight in metres is an arc in degrees: its corners alone would cut features off."""
    wide = GeoBox((20, 11_000), Affine(10, 0, 445_000, 0, -10, 5_800_000), CRS)
    points = geopandas.GeoDataFrame(
        {"kind": ["water"] * 50},
        geometry=[shapely.Point(445_000 + 110_000 * (i + 0.5) / 50, 5_799_995) for i in range(50)],
        crs=CRS,
    )
    points.to_crs("EPSG:4326").to_file(tmp_path / "p.gpkg")
    opened = open_labels(Labels(str(tmp_path / "p.gpkg"), attribute="kind"), wide, CLASSES)
    assert (opened.read(Window(0, 0, 20, 11_000)) == 1).sum() == 50


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    values = np.ones((1, 60, 50), np.float32)
    values[0, 0, :2] = 1.5
    with pytest.raises(InputError, match=r"1\.5 \(2\)"):
        ids_of(Labels(str(write_raster(tmp_path / "l.tif", values))))
    with pytest.raises(InputError, match="has 2 bands; labels are a raster of one band"):
        ids_of(Labels(str(write_raster(tmp_path / "m.tif", np.ones((2, 60, 50), np.uint8)))))


def test_raster_labels_come_by_nearest_neighbour_from_another_grid(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(1, 3, (1, 20, 17)).astype(np.uint8)
    path = write_raster(tmp_path / "l.tif", coarse, transform=TRANSFORM * Affine.scale(3))
    assert (ids_of(Labels(str(path))) == coarse[0].repeat(3, 0).repeat(3, 1)[:60, :50]).all()


def test_a_split_raster_holds_subset_codes_only(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4, (1, 60, 50)).astype(np.uint8)
    path = write_raster(tmp_path / "s.tif", values, nodata=0)
    everywhere, labels = Window(0, 0, 60, 50), np.zeros((60, 50), np.uint8)
    assert (open_split_raster(str(path), GRID).codes(everywhere, labels) == values[0]).all()
    values[0, 0, 0] = 7
    with pytest.raises(InputError, match="has 2 bands; a split is a raster of one band"):
        open_split_raster(str(write_raster(tmp_path / "two.tif", np.ones((2, 60, 50), np.uint8))), GRID)
    with pytest.raises(InputError, match="values 7 in a split raster"):
        open_split_raster(str(write_raster(tmp_path / "t.tif", values)), GRID).codes(everywhere, labels)
