"""Sources come to the reference grid in windows; labels become ids; what cannot is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import Resampling, reproject

from mibf.bundle import ClassName
from mibf.errors import InputError
from pipeline.labels import UNLABELLED, Labels, open_labels
from pipeline.scene import Source, open_source, reference_grid
from pipeline.split import open_split_raster
from tests.conftest import CRS, TRANSFORM, write_polygons, write_raster

GRID = GeoBox((60, 50), TRANSFORM, CRS)
CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"))


def values_of(path: Path, *, chunk: int = 64, grid: GeoBox = GRID, **declared: object) -> np.ndarray:
    source = Source("s", (str(path),), **declared)  # type: ignore[arg-type]  # any of its fields
    return open_source(source, grid, chunk=chunk).values.to_numpy()


def test_a_source_on_the_grid_is_read_as_it_is_and_stored_in_its_own_type(tmp_path: Path) -> None:
    values = np.arange(2 * 60 * 50, dtype=np.uint16).reshape(2, 60, 50)
    values[0, 3, 4] = 9999
    path = write_raster(tmp_path / "a.tif", values, nodata=9999)
    opened = open_source(Source("a", (str(path),)), GRID, chunk=32)
    assert opened.dtype == np.uint16
    assert not opened.resampled
    found = opened.values.to_numpy()
    assert np.isnan(found[0, 3, 4])
    found[0, 3, 4] = 9999
    assert (found == values).all()


def test_bands_of_several_files_stand_in_the_order_given(tmp_path: Path) -> None:
    paths = [write_raster(tmp_path / f"{n}.tif", np.full((1, 60, 50), n, np.uint8)) for n in (7, 3)]
    opened = open_source(Source("s", tuple(map(str, paths))), GRID, chunk=64)
    assert opened.values.to_numpy()[:, 0, 0].tolist() == [7, 3]


def test_resampling_is_gdals_whatever_the_window(tmp_path: Path) -> None:
    """Against one reprojection of the whole, to the tolerance of GDAL's approximated transform."""
    generator = np.random.default_rng(0)
    coarse = generator.random((1, 30, 25)).astype(np.float32)
    transform = Affine(0.0004, 0, 13.537, 0, -0.00025, 52.343)
    path = write_raster(tmp_path / "coarse.tif", coarse, transform=transform, crs="EPSG:4326", nodata=-1)
    whole = np.full((60, 50), np.nan, np.float32)
    reproject(
        coarse[0], whole, src_transform=transform, src_crs="EPSG:4326", src_nodata=-1, dst_nodata=np.nan,
        dst_transform=TRANSFORM, dst_crs=CRS, resampling=Resampling.bilinear,
    )  # fmt: skip
    opened = open_source(Source("s", (str(path),)), GRID, chunk=16)
    assert opened.resampled
    assert opened.dtype == np.float32
    found = opened.values.to_numpy()[0]
    assert np.isfinite(found).sum() > 500
    both = np.isfinite(found) & np.isfinite(whole)
    assert both.sum() > 0.98 * np.isfinite(whole).sum()
    assert np.abs(found[both] - whole[both]).max() < 0.05
    assert (values_of(path, chunk=16)[0][both] == values_of(path, chunk=60)[0][both]).all()


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
    assert reference_grid(Source("s", (str(bare),))).crs is None


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
    return np.asarray(open_labels(labels, GRID, CLASSES, chunk=32).compute())


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
    import geopandas

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


def test_a_split_raster_holds_subset_codes_only(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4, (1, 60, 50)).astype(np.uint8)
    path = write_raster(tmp_path / "s.tif", values, nodata=0)
    assert (open_split_raster(str(path), GRID, chunk=32).compute() == values[0]).all()
    values[0, 0, 0] = 7
    with pytest.raises(InputError, match="values 7 in a split raster"):
        open_split_raster(str(write_raster(tmp_path / "t.tif", values)), GRID, chunk=32)
