"""Items of several dates become one source: masked item by item, mosaicked by day, combined pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import reproject
from scipy.ndimage import distance_transform_edt

from jobs.config.resolve import sources
from jobs.config.scene import SceneSection
from jobs.prepare.damaged import without_damaged
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.scenes.geometries import AreaMask
from pipeline.scenes.source import open_source
from pipeline.stac import composite as composite_module
from tests.support.refusals import load_error
from tests.support.scenes import SmallScene, write_raster
from tests.support.stac_items import CLEAR, CLOUD, COLUMNS, DAYS, GRID, MASK, ROWS, observed, opened, write_items


@pytest.mark.parametrize("kind", ["median", "mean", "min", "max", {"percentile": 20}])
def test_composite_equals_rasterio_and_numpy(kind: Any, tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    found, valid = opened(path, mask=MASK, composite=kind).read(Window(0, 0, ROWS, COLUMNS))
    values, clear = observed(path, dilate=2)
    assert (valid == clear.any(axis=0)).all()
    masked = np.where(clear[:, None], values, np.nan)[:, :, valid]
    expected = {
        "median": lambda v: np.nanmedian(v, axis=0),
        "mean": lambda v: np.nanmean(v, axis=0),
        "min": lambda v: np.nanmin(v, axis=0),
        "max": lambda v: np.nanmax(v, axis=0),
    }.get(str(kind), lambda v: np.nanpercentile(v, 20, axis=0))(masked)
    assert found[:, valid] == pytest.approx(expected, rel=1e-6)
    assert 0.3 < clear.mean() < 0.9, "there are clouds and clear places"


def test_description_says_what_is_combined(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    assert opened(path, composite="median").how == ["exact", "median of 4 dates from 2024-06-01 to 2024-07-01"]
    assert opened(path, composite={"percentile": 20}).how[1].startswith("percentile 20 of 4 dates")
    assert opened(path).how == ["exact"]


def test_masked_mosaic_shows_the_first_clear_item(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    found, valid = opened(path, mask=MASK).read(Window(0, 0, ROWS, COLUMNS))
    values, clear = observed(path, dilate=2)
    first = np.take_along_axis(values, clear.argmax(axis=0)[None, None], axis=0)[0]
    assert (valid == clear.any(axis=0)).all()
    assert (found == first)[:, valid].all()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("median", "uint16"), ("median", "float32"), ("medoid", "uint16"), ("first", "uint16")]
)
def test_each_window_alone_is_what_the_whole_is(
    kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(write_items(tmp_path, DAYS, dtype=dtype), mask=MASK, composite=kind)
    assert source.observed_dtype == dtype
    values, valid = source.read(Window(0, 0, ROWS, COLUMNS))
    monkeypatch.setattr(composite_module, "DATES_BYTES", 4 * 5 * 260)  # parts of few pixels
    monkeypatch.setattr(composite_module, "COMBINED_BYTES", 4 * 5 * 80)  # which are combined by few rows
    for y, x, height, width in ((0, 0, ROWS, COLUMNS), (3, 5, 11, 16), (ROWS - 1, COLUMNS - 1, 1, 1), (0, 20, 40, 8)):
        own, there = source.read(Window(y, x, height, width))
        assert (own == values[:, y : y + height, x : x + width]).all()
        assert (there == valid[y : y + height, x : x + width]).all()


def test_items_of_several_zones_are_resampled_before_they_are_combined(tmp_path: Path) -> None:
    """The third item is in the neighbouring UTM zone; GDAL's nearest neighbour is the oracle of its place."""
    path = write_items(tmp_path, [f"2024-06-{day:02}T18:00:00Z" for day in (1, 11, 21)])
    other = GeoBox((60, 60), Affine(10, 0, -40_200, 0, -10, 4_017_200), "EPSG:32613")
    stored = np.random.default_rng(1).integers(1, 3000, (1, 60, 60)).astype(np.uint16)
    for name in ("red", "nir"):
        write_raster(tmp_path / f"2_{name}.tif", stored, transform=other.affine, crs="EPSG:32613", nodata=0)
    moved = np.zeros((ROWS, COLUMNS), np.uint16)
    reproject(
        stored[0], moved, src_transform=other.affine, src_crs="EPSG:32613", dst_transform=GRID.affine,
        dst_crs="EPSG:32612", src_nodata=0, dst_nodata=0, resampling=rasterio.enums.Resampling.nearest,
    )  # fmt: skip  # values in rows that belong together
    assert (moved > 0).mean() > 0.2, "the item reaches into the grid"
    section = {"stac": {"url": str(path), "assets": ["red", "nir"], "composite": "max"}, "resampling": "nearest"}
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "optical"}, "sources": {"optical": section}})
    found, _ = open_source(sources(scene)["optical"], GRID).read(Window(0, 0, ROWS, COLUMNS))
    values, _ = observed(write_first_two(path), dilate=0)
    differing = (found != np.maximum(values.max(axis=0), moved)).mean()
    assert differing < 0.01, "only places between two pixels may be rounded differently"


def test_all_bands_of_a_pixel_are_of_one_item(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS[:2])
    for number, value in ((0, 10), (1, 1000)):
        for factor, name in ((1, "red"), (2, "nir")):
            stored = np.full((1, ROWS, COLUMNS), factor * value, np.uint16)
            if (number, name) == (0, "nir"):
                stored[0, 0, 0] = 0
            write_raster(tmp_path / f"{number}_{name}.tif", stored, transform=GRID.affine, crs="EPSG:32612", nodata=0)
    found, _ = opened(path).read(Window(0, 0, ROWS, COLUMNS))
    assert found[:, 0, 0].tolist() == [1000, 2000]
    assert found[:, 1, 1].tolist() == [10, 20]


def write_one_cloud(folder: Path) -> Path:
    """Write an item with one cloudy pixel, at (20, 20)."""
    path = write_items(folder, DAYS[:1])
    clouds = np.full((1, ROWS, COLUMNS), CLEAR, np.uint8)
    clouds[0, 20, 20] = CLOUD
    write_raster(folder / "0_scl.tif", clouds, transform=GRID.affine, crs="EPSG:32612")
    return path


def test_clouds_beyond_the_grid_reach_into_it(tmp_path: Path) -> None:
    path, mask = write_one_cloud(tmp_path), MASK | {"dilate": 4}
    whole = opened(path, mask=mask).read(Window(0, 0, ROWS, COLUMNS))[1]
    part = opened(path, grid=GRID[:, 21:], mask=mask).read(Window(0, 0, ROWS, COLUMNS - 21))[1]
    assert (~part).any()
    assert (part == whole[:, 21:]).all()


def test_probability_of_clouds_has_a_limit(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS[:1])
    probability = np.random.default_rng(8).integers(0, 101, (1, ROWS, COLUMNS)).astype(np.uint8)
    probability[0, 20:30] = 40
    probability[0, 25, 25], probability[0, 0, 0] = 41, 255
    write_raster(tmp_path / "0_scl.tif", probability, transform=GRID.affine, crs="EPSG:32612", nodata=255)
    whole = Window(0, 0, ROWS, COLUMNS)
    assert (opened(path, mask={"asset": "scl", "above": 40}).read(whole)[1] == (probability[0] <= 40)).all()
    near = opened(path, mask={"asset": "scl", "above": 40, "dilate": 2}).read(whole)[1]
    assert (near == (distance_transform_edt(probability[0] <= 40) > 2)).all()
    both = opened(path, mask={"asset": "scl", "above": 40, "invalid": [40]}).read(whole)[1]
    assert (both == (probability[0] < 40)).all()


def test_dilation_counts_pixels_of_the_reference_grid(tmp_path: Path) -> None:
    path = write_one_cloud(tmp_path)
    coarse = GeoBox((ROWS // 2, COLUMNS // 2), GRID.affine * Affine.scale(2), GRID.crs)
    valid = opened(path, grid=coarse, scale=2, mask=MASK | {"dilate": 4}).read(Window(0, 0, ROWS // 2, COLUMNS // 2))[1]
    assert (~valid)[20].sum() == 2 * 8 + 1, "four pixels of the grid are eight of the source"


def test_mask_of_files_without_a_crs_gets_that_of_the_source(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS[:1])
    for name in ("red", "nir", "scl"):
        with rasterio.open(tmp_path / f"0_{name}.tif") as dataset:
            values = dataset.read()
        write_raster(tmp_path / f"0_{name}.tif", values, transform=GRID.affine, crs=None)
    assert opened(path, mask=MASK, crs="EPSG:32612").read(Window(0, 0, 5, 5))[0].shape == (2, 5, 5)


def test_mask_with_several_bands_is_reported(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS[:1])
    clouds = np.full((2, ROWS, COLUMNS), CLEAR, np.uint8)
    write_raster(tmp_path / "0_scl.tif", clouds, transform=GRID.affine, crs="EPSG:32612")
    [note] = opened(path, mask=MASK).left_out
    assert "0_scl.tif has 2 bands, of which the first is used; name one in `stac.mask.asset`" in note


def test_item_that_has_no_file_for_every_band_in_the_area_is_left_out(tmp_path: Path) -> None:
    """Bands of 10 and 20 m of one image may end at different places."""
    path = write_items(tmp_path, DAYS[:2])
    away = GRID.affine * Affine.translation(0, ROWS)
    for name in ("red", "scl"):
        values = np.full((1, 5, COLUMNS), CLEAR, np.uint8 if name == "scl" else np.uint16)
        write_raster(tmp_path / f"1_{name}.tif", values, transform=away, crs="EPSG:32612")
    inside = AreaMask(np.array([GRID.extent.geom]), GRID)
    source = opened(path, mask=MASK, area=inside)
    assert [part.position for part in source.parts] == [0, 0]
    assert source.read(Window(0, 0, ROWS, COLUMNS))[1].any()


def write_first_two(path: Path) -> Path:
    """Write a collection of the first two items."""
    content = json.loads(path.read_text())
    first = path.parent / "first.json"
    first.write_text(json.dumps(content | {"features": content["features"][:2]}))
    return first


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"composite": "modian"}, "`composite` is first, median, mean, min, max, medoid or {percentile: 20}"),
        ({"composite": {"percentile": 120}}, "composite.percentile"),
        ({"mask": {"asset": "scl"}}, "give `valid` values, `invalid` values or `bits`"),
        ({"mask": {"asset": "scl", "valid": [4], "dilate": -1}}, "mask.dilate"),
    ],
)
def test_wrong_keys_are_refused_by_name(values: dict[str, Any], expected: str, scene: SmallScene) -> None:
    content = scene.config()
    content["scenes"][0]["sources"]["optical"] = {"stac": {"url": "items.json", "assets": ["red"]} | values}
    assert expected in load_error(scene, scenes=content["scenes"])


def remaining(path: Path, left_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The median of all days but that of one item, by rasterio and numpy, and where it has data."""
    content = json.loads(path.read_text())
    del content["features"][left_out]
    other = path.parent / "remaining.json"
    other.write_text(json.dumps(content))
    values, clear = observed(other, dilate=0)
    valid = clear.any(axis=0)
    return np.nanmedian(np.where(clear[:, None], values, np.nan)[:, :, valid], axis=0), valid


CLOUDS = {"asset": "scl", "invalid": [CLOUD]}


@pytest.mark.parametrize("name", ["red", "scl"])
def test_missing_file_of_one_date_costs_that_date(name: str, tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    expected, there = remaining(path, 3)
    before = opened(path, mask=CLOUDS, composite="median")
    (tmp_path / f"3_{name}.tif").unlink()
    found = opened(path, mask=CLOUDS, composite="median")
    values, valid = found.read(Window(0, 0, ROWS, COLUMNS))
    np.testing.assert_array_equal(valid, there)
    assert values[:, valid] == pytest.approx(expected)
    assert [str(item) for item in found.declared.skipped] == [
        f"item 'item3' of 2024-06-21: {tmp_path}/3_{name}.tif does not exist"
    ]
    assert {file.url for file in found.files} < {file.url for file in before.files}, "so that fingerprints differ"
    with pytest.raises(InputError, match=rf"3_{name}.tif: no such file"):
        opened(path, mask=CLOUDS, composite="median", on_error="refuse")


@pytest.mark.parametrize("name", ["nir", "scl"])
def test_item_that_lacks_an_asset_costs_its_date(name: str, tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    expected, there = remaining(path, 4)
    content = json.loads(path.read_text())
    del content["features"][4]["assets"][name]
    path.write_text(json.dumps(content))
    found = opened(path, mask=CLOUDS, composite="median")
    values, valid = found.read(Window(0, 0, ROWS, COLUMNS))
    np.testing.assert_array_equal(valid, there)
    assert values[:, valid] == pytest.approx(expected)
    (cause,) = map(str, found.declared.skipped)
    assert cause.startswith(f"an item of 2024-07-01: item 'item4' has no asset '{name}', and no band of this name; it has ")
    for how in ({"composite": "median", "on_error": "refuse"}, {}):
        with pytest.raises(InputError, match=f"item 'item4' has no asset '{name}'"):
            opened(path, mask=CLOUDS, **how)
    for feature in content["features"]:
        feature["assets"].pop(name, None)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"item 'item0' has no asset '{name}'"):
        opened(path, mask=CLOUDS, composite="median")


def test_missing_file_of_a_single_date_is_refused(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS[1:3])
    (tmp_path / "1_red.tif").unlink()
    for how in ({"composite": "median"}, {}):
        with pytest.raises(InputError, match=r"1_red.tif: no such file"):
            opened(path, **how)
    series = write_items(tmp_path, DAYS)
    (tmp_path / "1_red.tif").unlink()
    with pytest.raises(InputError, match=r"1_red.tif: no such file"):
        opened(series)


def test_series_of_missing_files_is_refused(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    for file in tmp_path.glob("*_nir.tif"):
        file.unlink()
    with pytest.raises(InputError, match=r"0_nir.tif: no such file"):
        opened(path, composite="median")


@pytest.mark.parametrize("name", ["nir", "scl"])
def test_damaged_file_of_one_date_costs_that_date(name: str, tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    expected, there = remaining(path, 0)
    (tmp_path / f"0_{name}.tif").write_bytes(b"<html>Service unavailable</html>")
    section = {"stac": {"url": str(path), "assets": ["red", "nir"], "mask": CLOUDS, "composite": "median"}}
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "optical"}, "sources": {"optical": section}})
    declared = without_damaged(sources(scene)["optical"], scene.sources["optical"])
    values, valid = open_source(declared, GRID).read(Window(0, 0, ROWS, COLUMNS))
    np.testing.assert_array_equal(valid, there)
    assert values[:, valid] == pytest.approx(expected)
    (cause,) = declared.skipped
    assert str(cause).startswith(f"an item of 2024-06-01: {tmp_path}/0_{name}.tif: cannot be read as a raster")
    assert declared.notes[-1].startswith("source 'optical': 1 item of 5 left out of the composite: an item of 2024-06-01")
    section["stac"]["on_error"] = "refuse"
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "optical"}, "sources": {"optical": section}})
    with pytest.raises(InputError, match=rf"0_{name}.tif: cannot be read as a raster"):
        open_source(without_damaged(sources(scene)["optical"], scene.sources["optical"]), GRID)


def test_series_of_damaged_files_and_what_is_declared_wrongly_are_refused(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    section = {"stac": {"url": str(path), "assets": ["red", "nir"], "composite": "median"}, "bands": [2]}
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "optical"}, "sources": {"optical": section}})
    with pytest.raises(InputError, match="has no band 2"):
        without_damaged(sources(scene)["optical"], scene.sources["optical"])
    for file in tmp_path.glob("*_red.tif"):
        file.write_bytes(b"")
    del section["bands"]
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "optical"}, "sources": {"optical": section}})
    with pytest.raises(InputError, match=r"0_red.tif"):
        open_source(without_damaged(sources(scene)["optical"], scene.sources["optical"]), GRID)
