"""Patch stores and map stores as readers of GeoZarr's conventions see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS

from mibf.bundle.classes import ClassName
from pipeline.grid import finer, geozarr_attributes, grid_from_json
from pipeline.io import zarr_store
from pipeline.maps.map_store import MapStore
from pipeline.maps.products import product
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import StoredSource, Template, create_store
from tests.support.published_maps import ANTIMERIDIAN, CUSTOM_CRS, GEOGRAPHIC, LOCAL, UTM, make_grid

zarr_cm = pytest.importorskip("zarr_cm", reason="zarr-cm is not installed")

GRIDS = {
    "UTM": UTM,
    "geographic": GEOGRAPHIC,
    "no CRS": LOCAL,
    "custom CRS": CUSTOM_CRS,
    "antimeridian": ANTIMERIDIAN,
    "rotated": make_grid(Affine.translation(500000, 5_000_000) * Affine.rotation(20) * Affine.scale(10, -10), "EPSG:32633"),
    "south up": make_grid(Affine(10, 0, 500000, 0, 10, 4_000_000), "EPSG:32633"),
}


def make_store(folder: Path, grid: GeoBox) -> str:
    """Create an empty store with a source of the grid's resolution, and one of twice that from two dates."""
    url = str(folder / "scene.zarr")
    sources = (StoredSource("optical", 3, "exclude"), StoredSource("radar", 4, "fill", scale=2, periods=2))
    template = Template(grid, sources, ("uint16", "float32"), (ClassName(1, "water", "#0000ff"),), 128)  # type: ignore[arg-type]  # names of dtypes
    create_store(zarr_store.ChecksumStore.at(url), template, fingerprint="ff")
    return url


def documents(url: str) -> dict[str, dict[str, Any]]:
    """The metadata documents of the arrays with rows and columns, and of the root, by path."""
    found = {str(p.parent.relative_to(url)): json.loads(p.read_text()) for p in Path(url).rglob("zarr.json")}
    return {path: document for path, document in found.items() if path not in ("sources", "valid", "counts", "samples")}


@pytest.mark.parametrize("name", GRIDS)
def test_every_array_registers_the_conventions_with_its_own_grid(tmp_path: Path, name: str) -> None:
    grid = GRIDS[name]
    found = documents(make_store(tmp_path, grid))
    assert set(found) == {
        ".", "labels", "split", "sources/optical", "valid/optical", "sources/radar", "valid/radar", "counts/radar"
    }  # fmt: skip  # one line of names
    for path, document in found.items():
        attributes, expected = document["attributes"], finer(grid, 2) if "radar" in path else grid
        zarr_cm.spatial.validate_node_metadata(document)
        assert Affine(*attributes["spatial:transform"]).almost_equals(expected.affine)
        assert attributes["spatial:shape"] == list(expected.shape)
        if path != ".":
            assert attributes["spatial:dimensions"] == document["dimension_names"][-2:]
            assert attributes["spatial:shape"] == document["shape"][-2:]
        if grid.crs is None:
            assert [each["name"] for each in attributes["zarr_conventions"]] == ["spatial:"]
            assert not [key for key in attributes if key.startswith("proj:")]
        else:
            zarr_cm.proj.validate_node_metadata(document)
            assert CRS.from_user_input(attributes.get("proj:code") or attributes["proj:wkt2"]) == grid.crs.proj


def test_stores_are_read_as_before(tmp_path: Path) -> None:
    for name, grid in GRIDS.items():
        store = PatchStore(make_store(tmp_path / name.replace(" ", "-"), grid))
        assert store.grid == grid
        assert grid_from_json(dict(store.array("sources/radar").attrs)) == finer(grid, 2)


def test_store_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Stores had the attributes without the registration."""
    url = make_store(tmp_path, UTM)
    group = zarr.open_group(url, mode="r+")
    old = {key: value for key, value in group.attrs.items() if key not in ("zarr_conventions", "spatial:bbox")}
    group.attrs.put(old)
    assert PatchStore(url).grid == UTM


def test_map_store_registers_the_conventions(tmp_path: Path) -> None:
    store = PatchStore(make_store(tmp_path, UTM))
    url = str(tmp_path / "map.zarr")
    MapStore.create(url, store=store, products=[product("class")], tile=256)
    document = json.loads(Path(url, "zarr.json").read_text())
    zarr_cm.proj.validate_node_metadata(document)
    zarr_cm.spatial.validate_node_metadata(document)
    assert grid_from_json(document["attributes"]) == UTM


def test_xarray_opens_the_groups_and_their_attributes(tmp_path: Path) -> None:
    url = make_store(tmp_path, UTM)
    with xr.open_zarr(url, group="sources", consolidated=False) as opened:
        assert opened["radar"].dims == ("radar_band", "y_2", "x_2")
        assert opened["radar"].attrs["spatial:dimensions"] == ["y_2", "x_2"]
        assert opened["optical"].attrs["proj:code"] == "EPSG:32633"


def test_registered_conventions_are_those_of_the_library() -> None:
    """Identity and schema; the library's entries may have other descriptions."""
    attributes = geozarr_attributes(UTM)
    for mine, theirs in zip(attributes["zarr_conventions"], (zarr_cm.proj.CMO, zarr_cm.spatial.CMO), strict=True):
        assert {key: mine[key] for key in ("uuid", "schema_url", "spec_url")} == {
            key: theirs[key] for key in ("uuid", "schema_url", "spec_url")
        }
