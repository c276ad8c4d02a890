"""Sources from STAC items: values are scaled, and pixels without data found, as the items state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from rasterio.crs import CRS

from jobs.config.resolve import sources
from jobs.config.scene import SceneSection
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.scenes.reference_grid import reference_grid
from pipeline.scenes.source import AlignedSource, open_source
from tests.support.scenes import write_raster

SIDE = 8
#: Reflectance of two adjacent tiles, in steps that Sentinel-2's scale holds exactly.
REFLECTANCE = np.linspace(0.01, 0.6, 2 * SIDE * SIDE).reshape(SIDE, 2 * SIDE).round(4)


def write_items(folder: Path, items: list[dict[str, Any]], *, offsets: list[int], dtype: str = "uint16") -> Path:
    """Write one tile for each item beside the other, with 10000 * reflectance + offset; pixel (0, 0) of each is 0."""
    features = []
    for position, (fields, offset) in enumerate(zip(items, offsets, strict=True)):
        part = REFLECTANCE[:, position * SIDE : (position + 1) * SIDE]
        stored = np.rint(10000 * part + offset).astype(dtype)
        stored[0, 0] = 0
        place = Affine(10, 0, 500_000 + position * SIDE * 10, 0, -10, 4_000_000)
        write_raster(folder / f"tile{position}.tif", stored[None], transform=place, crs=fields.pop("file_crs", "EPSG:32612"))
        properties = {"datetime": "2024-07-01T00:00:00Z"} | fields.get("properties", {})
        features.append(
            {
                "type": "Feature", "stac_version": "1.0.0", "id": f"tile{position}", "geometry": None, "links": [],
                "collection": fields.get("collection", "sentinel-2-l2a"), "properties": properties,
                "assets": {"B04": {"href": f"tile{position}.tif"} | fields.get("asset", {})},
            }
        )  # fmt: skip  # values in rows that belong together
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def opened(path: Path, **changes: Any) -> AlignedSource:
    """Open the source of items on the grid of both tiles."""
    section = {"stac": {"url": str(path), "assets": ["red" if changes.pop("by_name", False) else "B04"]}} | changes
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "optical"}, "sources": {"optical": section}})
    source = sources(scene)["optical"]
    return open_source(source, reference_grid(source))


def read(source: AlignedSource) -> tuple[np.ndarray, np.ndarray]:
    values, valid = source.read(Window(0, 0, SIDE, 2 * SIDE))
    return values[0], valid


NODATA = {"raster:bands": [{"nodata": 0}]}
OLD = {"properties": {"s2:processing_baseline": "03.01"}, "asset": NODATA}
NEW = {"properties": {"s2:processing_baseline": "05.10"}}  # nodata is 0 by definition
APPLIED = {
    "properties": {"s2:processing_baseline": "05.10", "earthsearch:boa_offset_applied": True},
    "asset": {"raster:bands": [{"nodata": 0, "scale": 1e-4, "offset": -0.1}]},
}


@pytest.mark.parametrize(
    ("items", "offsets"),
    [([OLD, OLD], [0, 0]), ([NEW, NEW], [1000, 1000]), ([OLD, NEW], [0, 1000]), ([NEW, APPLIED], [1000, 0])],
    ids=["old", "new", "mixed baselines", "applied in one"],
)
def test_reflectance_of_sentinel_2_is_the_same_for_every_baseline(
    items: list[dict[str, Any]], offsets: list[int], tmp_path: Path
) -> None:
    values, valid = read(opened(write_items(tmp_path, [dict(i) for i in items], offsets=offsets), unscale=True))
    expected = np.ones((SIDE, 2 * SIDE), bool)
    expected[0, [0, SIDE]] = False, False
    assert (valid == expected).all(), "0 is no data as stored, before the offset"
    assert values[valid] == pytest.approx(REFLECTANCE[valid], abs=1e-6)


def test_mixed_baselines_as_stored_are_refused_with_both_values(tmp_path: Path) -> None:
    path = write_items(tmp_path, [dict(OLD), dict(NEW)], offsets=[0, 1000])
    with pytest.raises(
        InputError, match=r"scale 0.0001 and offset 0 in item 'tile0', but .* -0.1 in item 'tile1'; set `unsc"
    ):
        opened(path)


def test_note_says_which_items_have_which_values(tmp_path: Path) -> None:
    source = opened(write_items(tmp_path, [dict(OLD), dict(NEW)], offsets=[0, 1000]), unscale=True)
    [note] = source.declared.notes
    assert "scale 0.0001 and offset 0 in 1 and scale 0.0001 and offset -0.1 in 1; each is applied" in note


def test_values_stay_as_stored_unless_scaled(tmp_path: Path) -> None:
    source = opened(write_items(tmp_path, [dict(NEW), dict(NEW)], offsets=[1000, 1000]))
    values, valid = read(source)
    assert values.dtype == np.uint16
    assert (values[valid] == np.rint(10000 * REFLECTANCE + 1000)[valid]).all()
    assert not valid[0, 0]


def test_configured_nodata_replaces_that_of_the_item(tmp_path: Path) -> None:
    _, valid = read(opened(write_items(tmp_path, [dict(NEW), dict(NEW)], offsets=[1000, 1000]), nodata=65535))
    assert valid.all()


def test_nodata_that_the_type_cannot_hold_is_of_no_effect(tmp_path: Path) -> None:
    items = [{"asset": {"raster:bands": [{"nodata": -9999}]}}, {"asset": {"raster:bands": [{"nodata": "nan"}]}}]
    assert read(opened(write_items(tmp_path, items, offsets=[0, 0])))[1].all()


@pytest.mark.parametrize("stated", [NODATA, {}], ids=["stated", "by definition"])
def test_nodata_that_differs_between_file_and_item_is_refused(stated: dict[str, Any], tmp_path: Path) -> None:
    """The nodata value that Sentinel-2 has by definition is not one that the item states, so the file's holds."""
    path = write_items(tmp_path, [NEW | {"asset": stated}, NEW | {"asset": stated}], offsets=[1000, 1000])
    stored, place = np.full((1, SIDE, SIDE), 5, np.uint16), Affine(10, 0, 500_080, 0, -10, 4_000_000)
    stored[0, 1, 1] = 7
    write_raster(tmp_path / "tile1.tif", stored, transform=place, crs="EPSG:32612", nodata=7)
    if stated:
        with pytest.raises(InputError, match=r"tile1.tif: nodata is 7 in the file, but 0 in its STAC item; give the right"):
            opened(path)
    else:
        valid = read(opened(path))[1]
        assert not valid[1, SIDE + 1]
        assert valid[:, SIDE:].sum() == SIDE * SIDE - 1


def test_largest_float_is_one_nodata_value_however_it_is_cut(tmp_path: Path) -> None:
    items = [{"collection": "a", "asset": {"raster:bands": [{"nodata": -3.4e38}]}} for _ in range(2)]
    path = write_items(tmp_path, items, offsets=[0, 0], dtype="float32")
    stored = np.ones((1, SIDE, SIDE), np.float32)
    stored[0, 2, 2] = -3.4028235e38
    place = Affine(10, 0, 500_080, 0, -10, 4_000_000)
    write_raster(tmp_path / "tile1.tif", stored, transform=place, crs="EPSG:32612", nodata=-3.4028235e38)
    assert not read(opened(path))[1][2, SIDE + 2]


def test_sentinel_2_whose_offset_is_not_known_is_not_scaled(tmp_path: Path) -> None:
    path = write_items(tmp_path, [{}, {}], offsets=[0, 0])
    assert read(opened(path))[0].dtype == np.uint16
    with pytest.raises(InputError, match=r"tile0.tif: has values of Sentinel-2 whose offset depends on the processing"):
        opened(path, unscale=True)


def test_scale_of_zero_is_refused_where_it_is_applied(tmp_path: Path) -> None:
    items = [{"collection": "a", "asset": {"raster:bands": [{"scale": 0}]}} for _ in range(2)]
    path = write_items(tmp_path, items, offsets=[0, 0])
    opened(path)
    with pytest.raises(InputError, match=r"tile0.tif: its STAC item states a scale of 0"):
        opened(path, unscale=True)


def write_two_bands(folder: Path, scales: list[list[dict[str, Any]]]) -> Path:
    """Write two tiles of two bands of ones, with what their items state about each band."""
    items = [{"collection": "a", "asset": {"raster:bands": bands}} for bands in scales]
    path = write_items(folder, items, offsets=[0, 0])
    for position in range(2):
        place = Affine(10, 0, 500_000 + position * SIDE * 10, 0, -10, 4_000_000)
        stored = np.ones((2, SIDE, SIDE), np.uint16)
        write_raster(folder / f"tile{position}.tif", stored, transform=place, crs="EPSG:32612")
    return path


def test_bands_that_are_not_read_may_differ_and_those_read_may_not(tmp_path: Path) -> None:
    path = write_two_bands(tmp_path, [[{"scale": 2}, {"scale": 5}], [{"scale": 2}, {"scale": 7}]])
    assert opened(path, bands=[1]).bands == 1
    with pytest.raises(InputError, match=r"scale 5 and offset 0 in item 'tile0', but scale 7 and offset 0 in item 'tile1'"):
        opened(path, bands=[2])
    values, _ = opened(path, unscale=True).read(Window(0, 0, SIDE, 2 * SIDE))
    assert values[:, 0, [0, SIDE]].tolist() == [[2, 2], [5, 7]]


def test_band_that_one_item_scales_and_another_does_not_is_refused(tmp_path: Path) -> None:
    path = write_two_bands(tmp_path, [[{"scale": 2}, {}], [{"scale": 2}, {"scale": 7}]])
    with pytest.raises(InputError, match=r"tile1.tif has scale 7 and offset 0, but neither .*tile0.tif nor its STAC item"):
        opened(path, unscale=True)


def test_embeddings_have_scales_of_their_own(tmp_path: Path) -> None:
    items = [{"collection": "a", "asset": {"raster:bands": [{"scale": scale}]}} for scale in (1, 2)]
    path = write_items(tmp_path, items, offsets=[0, 0], dtype="int8")
    assert opened(path, decode="alphaearth").dtype == np.float32


def test_item_without_scale_beside_others_with_one_is_refused(tmp_path: Path) -> None:
    items = [{"collection": "a", "asset": {"raster:bands": [{"scale": 0.5}]}}, {"collection": "a"}]
    with pytest.raises(InputError, match=r"tile0.tif has scale 0.5 and offset 0, but neither .*tile1.tif nor its STAC item"):
        opened(write_items(tmp_path, items, offsets=[0, 0]), unscale=True)


def test_value_that_is_not_a_number_is_refused_only_where_it_is_used(tmp_path: Path) -> None:
    """Not where another band is read, where the configuration has its own, or where nothing is scaled."""
    wrong = [{"nodata": "none", "scale": "x"}, {"nodata": 9}]
    path = write_two_bands(tmp_path, [wrong, wrong])
    assert opened(path, bands=[2]).bands == 1
    assert read(opened(path, bands=[1], nodata=5))[1].all()
    message = r"tile0.tif: item 'tile0': asset 'B04' states nodata 'none', not a number; correct the item"
    with pytest.raises(InputError, match=message):
        opened(path, bands=[1])
    with pytest.raises(InputError, match=r"tile0.tif: item 'tile0': asset 'B04' states scale 'x', not a number"):
        opened(path, bands=[1], nodata=5, unscale=True)


@pytest.mark.parametrize("composite", [{}, {"composite": "median"}])
def test_item_that_states_a_scale_beside_one_that_states_none_is_refused(composite: dict[str, str], tmp_path: Path) -> None:
    """Their values may mean the same or not; the configuration can say so."""
    path = write_items(tmp_path, [{"collection": "a", "asset": {"raster:bands": [{"scale": 0.5}]}}, {"collection": "a"}],
                       offsets=[0, 0])  # fmt: skip  # values in rows that belong together
    stac = {"stac": {"url": str(path), "assets": ["B04"]} | composite}
    message = r"asset 'B04' has scale 0.5 and offset 0 in item 'tile0', but item 'tile1' states none, .* set `unscale: true`"
    with pytest.raises(InputError, match=message):
        opened(path, **stac)
    for said in ({"unscale": False}, {"gain": 0.5}, {"gain": 1}):
        values, valid = read(opened(path, **stac, **said))
        assert valid.all()
        stored = np.rint(10000 * REFLECTANCE) * said.get("gain", 1)
        stored[0, [0, SIDE]] = 0
        assert values == pytest.approx(stored)


def test_scale_of_one_is_none(tmp_path: Path) -> None:
    items = [{"collection": "a", "asset": {"raster:bands": [{"scale": 1, "offset": 0}]}}, {"collection": "a"}]
    assert read(opened(write_items(tmp_path, items, offsets=[0, 0])))[1].all()


@pytest.mark.parametrize("by_gdal", [True, False])
def test_nodata_of_an_item_joins_what_netcdf_leaves_unwritten(by_gdal: bool, tmp_path: Path) -> None:
    """A file that states no fill value; -32767 is what NetCDF has where nothing was written (NC_FILL_SHORT)."""
    stored = np.arange(SIDE * SIDE, dtype=np.int16).reshape(SIDE, SIDE)
    stored[1, 2], stored[3, 4] = -32767, -9999
    dims = ("y", "x") if by_gdal else ("x", "y")  # an order that GDAL does not read
    crs = xr.DataArray(0, attrs={"crs_wkt": CRS.from_epsg(32612).to_wkt(), "grid_mapping_name": "transverse_mercator"})
    axes = {"y": 4_000_000 - 5.0 - 10 * np.arange(SIDE), "x": 500_005.0 + 10 * np.arange(SIDE)}
    values = (dims, stored if by_gdal else stored.T, {"grid_mapping": "spatial_ref"})
    made = xr.Dataset({"red": values, "spatial_ref": crs}, coords=axes)
    encoding = {name: {"_FillValue": None} for name in ("red", "y", "x")}
    made.to_netcdf(tmp_path / "a.nc", engine="scipy", format="NETCDF3_CLASSIC", encoding=encoding)
    items = [{"collection": "a", "asset": {"href": "a.nc", "raster:bands": [{"nodata": -9999}]}}]
    path = write_items(tmp_path, items, offsets=[0])
    axes_key = {} if by_gdal else {"axes": ["x", "y"]}
    source = opened(path, variable="red", **axes_key)
    found, valid = source.read(Window(0, 0, SIDE, SIDE))
    expected = (stored != -32767) & (stored != -9999)
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(found[0], np.where(expected, stored, 0))


def test_crs_of_the_item_places_a_file_that_has_none(tmp_path: Path) -> None:
    items = [{"file_crs": None, "asset": {"proj:code": "EPSG:32612"}} for _ in range(2)]
    source = opened(write_items(tmp_path, items, offsets=[0, 0]))
    assert source.grid.crs is not None
    assert CRS.from_wkt(source.grid.crs.to_wkt()).to_epsg() == 32612
    assert source.grid.shape == (SIDE, 2 * SIDE)


def test_asset_is_found_by_its_common_name_in_each_item(tmp_path: Path) -> None:
    items = [{"asset": {"eo:bands": [{"common_name": "red"}]}} for _ in range(2)]
    assert opened(write_items(tmp_path, items, offsets=[0, 0]), by_name=True).bands == 1


def test_bands_beside_a_name_that_chooses_one_are_refused(tmp_path: Path) -> None:
    items = [{"asset": {"eo:bands": [{"common_name": "blue"}, {"common_name": "red"}]}} for _ in range(2)]
    path = write_items(tmp_path, items, offsets=[0, 0])
    with pytest.raises(InputError, match=r"source 'optical': a name in `stac.assets` chooses band 2 of .*leave out `bands`"):
        opened(path, by_name=True, bands=[1])


def test_alternate_location_is_read(tmp_path: Path) -> None:
    path = write_items(tmp_path, [dict(NEW), dict(NEW)], offsets=[1000, 1000])
    (tmp_path / "copies").mkdir()
    content = json.loads(path.read_text())
    for feature in content["features"]:
        asset = feature["assets"]["B04"]
        (tmp_path / asset["href"]).rename(tmp_path / "copies" / asset["href"])
        asset["alternate"] = {"copies": {"href": f"./copies/{asset['href']}"}}
    path.write_text(json.dumps(content))
    assert opened(path, stac={"url": str(path), "assets": ["B04"], "alternate": "copies"}).grid.shape == (SIDE, 2 * SIDE)
    with pytest.raises(InputError, match=r"asset 'B04' of item 'tile0' has no alternate location 's3'; it has copies"):
        opened(path, stac={"url": str(path), "assets": ["B04"], "alternate": "s3"})


def test_tessera_takes_its_scales_from_an_asset_of_each_item(tmp_path: Path) -> None:
    """The product of the stored integers and the scales of the same item; no data where a scale is not finite."""
    items = [{"collection": "a"} for _ in range(2)]
    path = write_items(tmp_path, items, offsets=[0, 0])
    drawn, content = np.random.default_rng(0), json.loads(path.read_text())
    stored = drawn.integers(-127, 128, (3, SIDE, 2 * SIDE)).astype(np.int8)
    scales = drawn.random((SIDE, 2 * SIDE)).astype(np.float32)
    scales[2, 3] = scales[4, SIDE + 5] = np.nan
    for position, feature in enumerate(content["features"]):
        part = np.s_[..., position * SIDE : (position + 1) * SIDE]
        place = Affine(10, 0, 500_000 + position * SIDE * 10, 0, -10, 4_000_000)
        write_raster(tmp_path / f"tile{position}.tif", stored[part], transform=place, crs="EPSG:32612")
        write_raster(tmp_path / f"scales{position}.tif", scales[None][part], transform=place, crs="EPSG:32612")
        feature["assets"]["scales"] = {"href": f"scales{position}.tif"}
    path.write_text(json.dumps(content))
    source = opened(path, decode={"tessera": {"scales": "scales"}}, bands=[3, 1])
    values, valid = source.read(Window(0, 0, SIDE, 2 * SIDE))
    np.testing.assert_array_equal(valid, np.isfinite(scales))
    np.testing.assert_array_equal(values, np.where(valid, stored[[2, 0]].astype(np.float32) * scales, 0))
    assert {Path(file.url).name for file in source.files} >= {"scales0.tif", "scales1.tif"}, "they are inputs"
    with pytest.raises(InputError, match=r"item 'tile0' has no asset 'scale', and no band of this name"):
        opened(path, decode={"tessera": {"scales": "scale"}})
