"""Polygons of published maps in files that other readers open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from jobs.bench.harness.class_map import write_class_map
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.maps.products import MapDtype, product
from pipeline.polygons.generalize import Rules
from pipeline.polygons.write import write_polygons
from pipeline.publishing.class_map import ClassMap, MapReplacedError
from tests.support.published_maps import CLASSES, CUSTOM_CRS, GEOGRAPHIC, LOCAL, UTM

RANDOM = np.random.default_rng(5)
ROTATED = GeoBox((40, 30), Affine(8, 6, 500_000, 6, -8, 5_000_000), "EPSG:32633")
SMALL = GeoBox((40, 30), UTM.affine, UTM.crs)


def publish(folder: Path, grid: GeoBox, dtype: MapDtype = "uint16", **options: Any) -> tuple[ClassMap, Any, Any]:
    """A published map of random patches, with its ids and confidences."""
    ids = np.array([1, 2, 5, 255], np.uint8)[RANDOM.integers(0, 4, (10, 10)).repeat(4, 0).repeat(3, 1)]
    confidence = np.where(ids == 255, np.nan, RANDOM.random(ids.shape).astype(np.float32))
    codes = product("confidence", dtype).encode(confidence)
    read = lambda layer: lambda window: layer[window.slices]  # noqa: E731  # two readers alike
    url = write_class_map(folder, grid, CLASSES, read(ids), read(codes), dtype=dtype, **options)
    return ClassMap.open(url), ids, product("confidence", dtype).decode(codes)


@pytest.mark.parametrize(
    "grid", [SMALL, ROTATED, GEOGRAPHIC, CUSTOM_CRS, LOCAL], ids=["utm", "rotated", "degrees", "custom", "none"]
)
def test_both_formats_have_the_map_back(grid: GeoBox, tmp_path: Path) -> None:
    found, ids, confidence = publish(tmp_path / "map", grid)
    urls = [str(tmp_path / "out.gpkg"), str(tmp_path / "out.parquet")]
    totals = write_polygons(found, Rules(), urls, facts={"mibf_map": "s3://b/m"}, side=13)
    frames = [geopandas.read_file(urls[0]), geopandas.read_parquet(urls[1])]
    for frame in frames:
        assert (frame.crs is None) == (grid.crs is None)
        assert frame.crs is None or pyproj.CRS(frame.crs.to_wkt()) == pyproj.CRS(grid.crs.to_wkt())
        assert frame.is_valid.all()
        shapes = zip(frame.geometry, frame["class_id"], strict=True)
        np.testing.assert_array_equal(rasterize(shapes, ids.shape, fill=255, transform=grid.affine, dtype="uint8"), ids)
        assert dict(frame.groupby("class_id")["pixels"].sum()) == {i: (ids == i).sum() for i in (1, 2, 5)} == totals.pixels
        assert set(zip(frame["class_id"], frame["class"], strict=True)) == {(c.id, c.name) for c in CLASSES}
        weighted = (frame["confidence"] * frame["pixels"]).sum() / frame["pixels"].sum()
        assert weighted == pytest.approx(np.nanmean(confidence), rel=1e-9)
        assert frame["area_ha"].isna().all() == (grid is LOCAL)
    assert sorted(frames[0]["pixels"]) == sorted(frames[1]["pixels"])
    assert pyogrio.read_info(urls[0])["layer_metadata"]["mibf_map"] == "s3://b/m"


def test_area_in_degrees_is_that_on_the_ellipsoid(tmp_path: Path) -> None:
    found, _, _ = publish(tmp_path / "map", GEOGRAPHIC)
    write_polygons(found, Rules(), [str(tmp_path / "out.parquet")], facts={})
    frame = geopandas.read_parquet(tmp_path / "out.parquet")
    geod = pyproj.Geod(ellps="WGS84")
    expected = [abs(geod.geometry_area_perimeter(shape.segmentize(1e-3))[0]) / 1e4 for shape in frame.geometry]
    np.testing.assert_allclose(frame["area_ha"], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_polygons_do_not_depend_on_windows_whatever_the_type_of_confidence(dtype: MapDtype, tmp_path: Path) -> None:
    found, _, _ = publish(tmp_path / "map", SMALL, dtype)
    rows = []
    for side in (7, 1024):
        write_polygons(found, Rules(3, 20, 0.3, 8), [f"memory://polygons/{dtype}{side}.parquet"], facts={}, side=side)
        storage.open_url("memory://")[0].get_file(f"/polygons/{dtype}{side}.parquet", str(tmp_path / f"{side}.parquet"))
        frame = geopandas.read_parquet(tmp_path / f"{side}.parquet").assign(wkb=lambda f: f.geometry.to_wkb())
        rows.append(sorted(map(tuple, frame.drop(columns="geometry").to_numpy())))
    assert rows[0] == rows[1]


def test_map_without_data_or_confidence_gives_files_without_polygons(tmp_path: Path) -> None:
    url = write_class_map(tmp_path / "map", SMALL, CLASSES, lambda w: np.full((w.height, w.width), 255, np.uint8))
    urls = [str(tmp_path / "out.gpkg"), str(tmp_path / "out.parquet")]
    write_polygons(ClassMap.open(url), Rules(), urls, facts={})
    for frame in (geopandas.read_file(urls[0]), geopandas.read_parquet(urls[1])):
        assert len(frame) == 0
        assert {"class_id", "class", "area_ha", "confidence", "pixels"} <= set(frame.columns)


def test_map_replaced_meanwhile_is_noticed_and_nothing_is_written(tmp_path: Path) -> None:
    found, _, _ = publish(tmp_path / "map", SMALL)
    publish(tmp_path / "map", SMALL, fingerprint="1")
    output = tmp_path / "out.gpkg"
    output.write_text("earlier")
    with pytest.raises(MapReplacedError, match="another map was published there"):
        write_polygons(found, Rules(), [str(output)], facts={})
    assert output.read_text() == "earlier"


def test_minimum_mapping_unit_needs_a_crs(tmp_path: Path) -> None:
    found, _, _ = publish(tmp_path / "map", LOCAL)
    with pytest.raises(InputError, match="Use --sieve with a number of pixels"):
        write_polygons(found, Rules(minimum_hectares=1), [str(tmp_path / "out.gpkg")], facts={})


def test_map_is_described_by_its_item(tmp_path: Path) -> None:
    found, ids, _ = publish(tmp_path / "map", CUSTOM_CRS)
    assert (found.grid, found.classes, found.name) == (CUSTOM_CRS, CLASSES, "map")
    np.testing.assert_array_equal(found.read_classes(Window(3, 5, 20, 10)), ids[3:23, 5:15])
    assert ClassMap.open(f"{found.folder}/item.json").folder == found.folder
    with pytest.raises(InputError, match="no map is published there"):
        ClassMap.open(str(tmp_path))
