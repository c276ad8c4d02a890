"""Reading the item of a published map: its products, from single files and blocks, and maps of earlier versions."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from pipeline.codes import RENAMED_PRODUCTS
from pipeline.geotiff.cog import pieces
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.maps.products import MAP_PRODUCTS, MapProductName, product
from pipeline.publishing.stac_item import Asset, InvalidItemError, ModelLink, map_item
from pipeline.publishing.stac_item_reader import PublishedItem, read_item
from tests.support.scenes import CRS, TRANSFORM

SHAPE = (600, 600)
CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"))


def files(name: str, block: int) -> list[Asset]:
    """The files of a product: one, or four blocks and a VRT."""
    layer = product(name) if name in MAP_PRODUCTS else product("entropy")
    if name == "sources":
        layer = product("sources", sources=2)
    bands = tuple(layer.band_names(CLASSES, ["optical", "radar"])) if name != "sources" else ("optical", "radar")
    parts = [*pieces(name, SHAPE, block=block), (f"{name}.vrt", Window(0, 0, *SHAPE))]
    return [
        Asset(name, file, 9, "ab" * 32, layer.dtype, layer.nodata, layer.scale, layer.unit, bands, window)
        for file, window in (parts if len(parts) > 2 else parts[:1])
    ]


def item(*names: str, block: int = 1024) -> dict[str, Any]:
    """The item of a map with these products, as it is read from its file."""
    made = map_item(
        id="valley",
        grid=GeoBox(SHAPE, TRANSFORM, CRS),
        assets=[asset for name in names for asset in files(name, block)],
        classes=CLASSES,
        created=datetime(2026, 1, 2, tzinfo=UTC),
        datetime=None,
        model=ModelLink("/models/main/model.json", "abc", "main"),
        inputs={},
        ledger="./ledger",
        version="1.0.0",
        fingerprint="f",
        run="main",
        facts={"tile": 64, "missing": "declared"},
    )
    return dict(json.loads(json.dumps(made)))


def test_item_describes_files_grid_and_model() -> None:
    found = PublishedItem.of(item("class", "confidence"))
    assert [file.name for file in found.files] == ["class.tif", "confidence.tif"]
    assert (found.files[0].bytes, found.files[0].sha256) == (9, "ab" * 32)
    assert (found.shape_yx, found.tile, found.missing, found.model) == (SHAPE, 64, "declared", "abc")
    assert found.products == (product("class"), product("confidence"))
    assert found.rasters(product("class")) == ("class.tif",)
    assert found.rasters(product("entropy")) == ()


@pytest.mark.parametrize("name", MAP_PRODUCTS)
@pytest.mark.parametrize("block", [1024, 512])
def test_product_of_whole_files_and_of_blocks_is_recognised(name: MapProductName, block: int) -> None:
    """Names with underscores too: `second_class_y0_x512.tif` is a block of `second_class`."""
    listed = item(name, block=block)
    assert (f"{name}_y0_x512" in listed["assets"]) == (block == 512)
    found = PublishedItem.of(listed)
    assert [layer.name for layer in found.products] == [name]
    assert found.rasters(found.products[0]) == ((f"{name}.tif",) if block == 1024 else (f"{name}.vrt",))


@pytest.mark.parametrize("block", [1024, 512])
@pytest.mark.parametrize("old", RENAMED_PRODUCTS)
def test_old_product_name_is_refused_with_the_remedy(old: str, block: int) -> None:
    remedy = f"{old} is the old name of {RENAMED_PRODUCTS[old]}; run `mibf map` to publish the map again"
    with pytest.raises(InvalidItemError, match=remedy):
        PublishedItem.of(item("class", old, block=block))


def test_unknown_product_is_refused() -> None:
    with pytest.raises(InvalidItemError, match="doubt is not a known product"):
        PublishedItem.of(item("doubt"))


def test_missing_item_is_none_and_damaged_item_is_refused() -> None:
    assert read_item("memory://reader/none") is None
    for content, message in ((b"{", "not valid JSON"), (b"{}", "KeyError: 'properties'"), (b"[]", "not the item of a map")):
        storage.write_bytes("memory://reader/one/item.json", content)
        with pytest.raises(InvalidItemError, match=message):
            read_item("memory://reader/one")
