"""Programs that people use open a published map as it is: GDAL, QGIS, rioxarray, odc-stac, pystac and stac-geoparquet."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import rioxarray
import stac_geoparquet.arrow

from mibf.bundle.classes import ClassName
from pipeline.io.lease import Lease
from pipeline.parallel.executor import ThreadExecutor
from pipeline.publishing.publish_map import publish_map
from pipeline.publishing.published_map import ITEM
from pipeline.publishing.stac_catalog import catalog_entry
from pipeline.publishing.stac_item import ModelLink, map_item
from pipeline.store.patch_store import PatchStore
from tests.support.http_server import served
from tests.support.publications import build_store, make_publication, random_layers, write_work
from tests.support.scenes import CRS, TRANSFORM
from tests.support.stac_extensions import check_fields, check_published, needs_schemas

NAMES = ("class", "confidence")
#: Names that XML and other alphabets make difficult, an id that does not follow, and a class without a pixel.
CLASSES = (
    ClassName(1, 'water & <ice> "old"', "#0000ff"),
    ClassName(2, "forêt 森", "#00ff00"),
    ClassName(7, "town", "#ff8800"),
)
SYSTEM_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Map:
    """A published map of random codes."""

    folder: Path
    codes: dict[str, Any]

    @property
    def counts(self) -> dict[int, int]:
        return {c.id: int((self.codes["class"] == c.id).sum()) for c in CLASSES}

    @property
    def item(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / ITEM).read_text()))


def publish(store: PatchStore, folder: Path, *, block: int) -> Map:
    layers = random_layers(NAMES, 1)  # type: ignore[arg-type]  # names of products
    layers["confidence"] *= 2500
    tiles = write_work(store, folder, layers)
    target = folder / "maps/one/main"
    publication = make_publication(store, folder, str(target), NAMES, tiles, block=block)  # type: ignore[arg-type]  # as above
    publication = replace(publication, files=replace(publication.files, classes=CLASSES))

    def describe(assets: Any) -> dict[str, Any]:
        return map_item(
            id="one-main",
            grid=store.grid,
            assets=assets,
            classes=CLASSES,
            created=datetime(2026, 1, 2, tzinfo=UTC),
            datetime="2024-07-01T00:00:00Z",
            model=ModelLink("../../../models/main/model.json", "abc", "main"),
            inputs={},
            ledger="./ledger",
            version="0.1.0",
            fingerprint="ff",
            run="now",
            facts={"tile": 256},
            entry=catalog_entry("valley", "one", "main"),
        )

    def progress(steps: int) -> Any:
        del steps
        return _Silent()

    publish_map(publication, ThreadExecutor(2), describe=describe, run="now", lease=Lease(), progress=progress)
    return Map(target, layers)


class _Silent:
    def __enter__(self) -> Any:
        return lambda count: None

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Map]:
    """A map in one file per product, and the same in blocks with a VRT."""
    store = build_store(tmp_path_factory.mktemp("store"))
    return {
        "files": publish(store, tmp_path_factory.mktemp("files"), block=1024),
        "blocks": publish(store, tmp_path_factory.mktemp("blocks"), block=512),
    }


@pytest.fixture(scope="module")
def found(maps: dict[str, Map]) -> dict[str, Any]:
    """What the distribution's GDAL and QGIS read of each raster, on disk and from a web server."""
    if missing := without_qgis():
        pytest.skip(missing)
    with served(maps["files"].folder) as url:
        paths = {
            "class": str(maps["files"].folder / "class.tif"),
            "confidence": str(maps["files"].folder / "confidence.tif"),
            "mosaic": str(maps["blocks"].folder / "class.vrt"),
            "block": str(maps["blocks"].folder / "class_y512_x0.tif"),
            "web": f"/vsicurl/{url}/class.tif",
        }
        probe = Path(__file__).parents[2] / "support/qgis_probe.py"
        environment = {"PATH": os.environ["PATH"], "HOME": str(maps["files"].folder.parent), "QT_QPA_PLATFORM": "offscreen"}
        command = [SYSTEM_PYTHON, str(probe), *paths.values()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    return {name: read[path] for name, path in paths.items()}


@cache
def without_qgis() -> str:
    """Why QGIS cannot be used here; empty if it can."""
    if not Path(SYSTEM_PYTHON).exists():
        return "the distribution's Python is not installed"
    command = [SYSTEM_PYTHON, "-c", "import qgis.core, osgeo.gdal"]
    there = subprocess.run(command, env={"QT_QPA_PLATFORM": "offscreen"}, capture_output=True, check=False).returncode == 0
    return "" if there else "QGIS is not installed; on Debian: apt-get install python3-qgis"


RED_GREEN_BLUE = {c.id: list(c.rgb) for c in CLASSES}


@pytest.mark.parametrize("name", ["class", "web", "mosaic"])
def test_gdal_reads_names_colours_and_counts(maps: dict[str, Map], found: dict[str, Any], name: str) -> None:
    read, counts = found[name]["gdal"], maps["files"].counts
    assert {c.id: read["names"][c.id] for c in CLASSES} == {c.id: c.name for c in CLASSES}
    assert {c.id: read["colors"][c.id] for c in CLASSES} == {c.id: [*c.rgb, 255] for c in CLASSES}
    assert read["columns"] == ["Value", "Count", "Class", "Red", "Green", "Blue", "Alpha"]
    assert read["usages"] == [5, 1, 2, 6, 7, 8, 9], "GFU_MinMax, GFU_PixelCount, GFU_Name and the colours"
    rows = [[int(row[0]), float(row[1]), row[2], *map(int, row[3:])] for row in read["rows"]]
    assert rows == [[c.id, counts[c.id], c.name, *c.rgb, 255] for c in CLASSES]


def test_gdal_reads_the_counts_of_a_block(maps: dict[str, Map], found: dict[str, Any]) -> None:
    there = maps["blocks"].codes["class"][0, 512:, :512]
    assert [float(row[1]) for row in found["block"]["gdal"]["rows"]] == [int((there == c.id).sum()) for c in CLASSES]


@pytest.mark.parametrize("name", ["class", "mosaic"])
def test_qgis_shows_names_and_colours_by_itself(found: dict[str, Any], name: str) -> None:
    read = found[name]["qgis"]
    assert (read["valid"], read["renderer"], read["crs"]) == (True, "paletted", CRS)
    assert read["legend"] == [[c.name, c.color] for c in CLASSES]


def test_qgis_shows_confidence_as_fractions(found: dict[str, Any]) -> None:
    read = found["confidence"]["qgis"]
    assert (read["valid"], read["renderer"]) == (True, "singlebandpseudocolor")
    assert [label for label, _ in read["legend"]] == ["0", "0.25", "0.5", "0.75", "1"]
    assert read["value"] in (0.25, 0.5), "QGIS applies the scale"


@pytest.mark.parametrize("name", ["files", "blocks"])
def test_rioxarray_opens_the_rasters(maps: dict[str, Map], name: str) -> None:
    ending = "tif" if name == "files" else "vrt"
    with rioxarray.open_rasterio(maps[name].folder / f"class.{ending}") as raster:
        assert raster.rio.crs == rasterio.CRS.from_user_input(CRS)
        assert raster.rio.transform() == TRANSFORM
        assert raster.rio.nodata == 255
        np.testing.assert_array_equal(raster.values, maps[name].codes["class"])
    with rioxarray.open_rasterio(maps[name].folder / f"confidence.{ending}", mask_and_scale=True) as raster:
        np.testing.assert_allclose(raster.values, maps[name].codes["confidence"] * 1e-4, rtol=1e-6)


def test_odc_stac_loads_the_item(maps: dict[str, Map]) -> None:
    read = pystac.Item.from_file(str(maps["files"].folder / ITEM))
    odc_stac = pytest.importorskip("odc.stac", reason="odc-stac is not installed")
    loaded = odc_stac.load([read], bands=list(NAMES))
    assert loaded.odc.geobox.crs == CRS
    assert loaded.odc.geobox.affine == TRANSFORM
    for name in NAMES:
        np.testing.assert_array_equal(loaded[name].values, maps["files"].codes[name])
    assert loaded["class"].dtype == np.uint8
    assert loaded["class"].attrs["nodata"] == 255


def test_item_describes_the_files_beside_the_rasters(maps: dict[str, Map]) -> None:
    assets = maps["files"].item["assets"]
    roles = {name: assets[name]["roles"] for name in ("class.qml", "confidence.qml", "class.tif.aux.xml")}
    assert roles == {"class.qml": ["style"], "confidence.qml": ["style"], "class.tif.aux.xml": ["metadata"]}
    counted = {c["value"]: c["count"] for c in assets["class"]["classification:classes"] if "count" in c}
    assert counted == maps["files"].counts
    whole = maps["blocks"].item["assets"]["class"]["classification:classes"]
    assert {c["value"]: c["count"] for c in whole if "count" in c} == counted
    assert (assets["class"]["title"], assets["class.qml"]["title"]) == (
        "Most probable class",
        "Most probable class: QGIS style",
    )
    block = maps["blocks"].item["assets"]["class_y512_x0"]
    assert block["title"] == "Most probable class, from row 512 and column 0"


@needs_schemas
@pytest.mark.parametrize("name", ["files", "blocks"])
def test_item_of_a_published_map_is_valid(maps: dict[str, Map], name: str) -> None:
    item = maps[name].item
    check_fields(item)
    check_published(item)


def test_stac_geoparquet_reads_the_item(maps: dict[str, Map]) -> None:
    reader = stac_geoparquet.arrow.parse_stac_items_to_arrow([maps["files"].item])
    (row,) = stac_geoparquet.arrow.stac_table_to_items(reader.read_all())
    assert row["id"] == "one-main"
    assert row["assets"]["class"]["classification:classes"][0]["title"] == CLASSES[0].name
