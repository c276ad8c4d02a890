"""`mibf verify` of maps: corruption that it reports, changes since that it only notes, and repair of the listed files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from pipeline.grid import Tile
from pipeline.maps.ledger import Ledger, LedgerEvent
from tests.support.models import write_model
from tests.support.scenes import make_scene, write_raster
from tests.support.verified_map import Project, configure, flip


def offset_of_block(path: Path) -> int:
    """Return the file offset of the first pixel block of a GeoTIFF."""
    with rasterio.open(path) as dataset:
        return int(dataset.tags(1, ns="TIFF").get("BLOCK_OFFSET_0_0") or dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1))


def change_pixel(path: Path, y: int, x: int, value: int) -> None:
    """Change one pixel and keep the file valid."""
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.write(np.full((1, 1, 1), value, dataset.dtypes[0]), window=rasterio.windows.Window(x, y, 1, 1))


def test_intact_map_verifies(project: Project) -> None:
    found = project.verify("--sample", "2")
    assert found["intact"]
    assert (found["files"], found["tiles"], found["sampled"]) == (
        7,
        9,
        2,
    )  # products, quicklook, styles, sidecar
    assert found["broken"] == found["notes"] == []
    assert found["published"] == project.item()["properties"]["created"]
    text = project.run("verify", "--sample", "100").stdout
    assert "small: map: 7 files" in text
    assert "9 tiles, 9 of them recomputed, intact" in text


def test_map_split_into_blocks_verifies_and_lost_files_are_reported(tmp_path: Path) -> None:
    """For a large scene each product is several block files and a VRT."""
    scene = make_scene(tmp_path)
    values = np.random.default_rng(0).integers(1, 9999, (3, 530, 40)).astype(np.uint16)
    write_raster(tmp_path / "optical.tif", values, nodata=0)
    write_raster(tmp_path / "radar.tif", values[:1].astype(np.float32))
    write_raster(tmp_path / "labels.tif", (values[:1] % 3).astype(np.uint8) + (values[:1] % 3 == 0) * np.uint8(5))
    configure(scene, block=512, products=["class", "probabilities"])
    project = Project(tmp_path)
    project.run("prepare")
    write_model(tmp_path)
    project.run("map")
    found = project.verify("--sample", "1")
    assert found["intact"], found
    assert (found["files"], found["tiles"]) == (10, 9)  # two blocks and a VRT per product, quicklook, style, two sidecars
    (project.map / "class_y512_x0.tif").unlink()
    lost, tile = project.verify(status=3)["broken"]
    assert lost == "class_y512_x0.tif: is missing"
    assert tile.startswith("small/y512_x0: cannot be read (")
    (project.map / "class.vrt").unlink()
    lost, mosaic = project.verify(status=3)["broken"]
    assert (lost, mosaic) == ("class_y512_x0.tif: is missing", "class.vrt: is missing")
    project.run("map")
    assert project.verify()["intact"]


def test_changed_byte_is_reported_and_file_can_be_republished(project: Project) -> None:
    path = project.map / "confidence.tif"
    flip(path, offset_of_block(path) + 50)
    result = project.run("verify", status=3)
    assert "Traceback" not in result.output
    broken = project.verify(status=3)["broken"]
    assert broken[0] == "confidence.tif: its checksum differs from the one recorded when it was published"
    assert "small/y0_x0: " in broken[1]
    assert "delete the listed files" in result.stderr
    path.unlink()
    project.run("map")
    assert project.verify()["intact"]


def test_truncated_and_missing_files_are_reported(project: Project) -> None:
    path = project.map / "class.tif"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert project.verify(status=3)["broken"][0] == f"class.tif: has {size - 1:,} bytes instead of {size:,}"
    path.unlink()
    found = project.verify(status=3)
    assert found["broken"] == ["class.tif: is missing"]
    assert "class missing: tile checksums cannot be computed" in found["notes"][0]


def test_statistics_in_a_sidecar_are_noted_and_a_missing_one_is_reported(project: Project) -> None:
    """GDAL and QGIS write statistics into `class.tif.aux.xml` when somebody looks at the map."""
    path = project.map / "class.tif.aux.xml"
    path.write_text(path.read_text().replace("</PAMDataset>", "<Metadata/></PAMDataset>"))
    found = project.verify()
    assert found["intact"]
    assert "GDAL and QGIS add statistics to this file" in found["notes"][0]
    path.unlink()
    (project.map / "class.qml").write_text("changed")
    broken = project.verify(status=3)["broken"]
    assert [line.split(":")[0] for line in broken] == ["class.qml", "class.tif.aux.xml"]
    project.run("map")
    assert project.verify()["notes"] == []


def test_changed_pixel_in_a_valid_file_is_reported(project: Project) -> None:
    """The file checksum and the tile checksum both reveal it; the latter even if the item is updated to match the file."""
    path = project.map / "class.tif"
    with rasterio.open(path) as dataset:
        before = int(dataset.read(1)[100, 70])
    change_pixel(path, 100, 70, 1 if before != 1 else 2)
    tile = "small/y64_x64: its pixels do not match the checksum in the ledger"
    file, found = project.verify(status=3)["broken"]
    assert file.startswith("class.tif: has ")
    assert found == tile
    project.sign("class.tif")
    assert project.verify(status=3)["broken"] == [tile]
    assert "`mibf map --restart`" in project.run("verify", status=3).stderr
    again = project.verify("--sample", "9", status=3)
    assert again["broken"] == [tile], "the recomputed tile matches the ledger, so recomputing adds no error"
    change_pixel(path, 100, 70, 255)
    (line,) = (line for line in project.verify(status=3)["broken"] if line.startswith("small/"))
    assert line == f"{tile}; 1 pixels of class are missing or should be empty"
    project.run("map", "--restart")
    assert project.verify()["intact"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda text: text[:-20], "item.json: not valid JSON"),
        (lambda text: '{"type": "Feature"}', "item.json: not the item of a map (KeyError: 'properties')"),
        (lambda text: text.replace('"./class.tif"', '"../class.tif"'), "is not in the item's folder"),
        (lambda text: text.replace('"stac_version": "1.1.0"', '"stac_version": 1'), "item.json: the STAC item"),
        (lambda text: text.replace('"data_type": "uint16"', '"data_type": "int16"'), "confidence is stored as int16"),
    ],
)
def test_edited_stac_item_is_reported(project: Project, harm: Callable[[str], str], message: str) -> None:
    path = project.map / "item.json"
    before = path.read_text()
    path.write_text(harm(before))
    assert path.read_text() != before
    assert message in project.verify(status=3)["broken"][0]


def test_map_with_an_old_product_name_is_refused_and_map_publishes_it_again(project: Project) -> None:
    """A map of a version in which `mutual_information` was called `information`."""
    item = project.item()
    item["assets"]["information"] = item["assets"].pop("confidence") | {"href": "./information.tif"}
    item["properties"]["mibf:content"] = "of an earlier version"
    del item["properties"]["mibf:tiles_digest"], item["properties"]["mibf:ledger_events"]
    project.write_item(item)
    (project.map / "confidence.tif").rename(project.map / "information.tif")
    (line,) = project.verify(status=3)["broken"]
    assert line.startswith("item.json: not the item of a map")
    assert "information is the old name of mutual_information; run `mibf map` to publish the map again" in line
    project.run("map")
    assert project.verify()["intact"]
    assert not (project.map / "information.tif").exists()


def test_tiles_missing_from_the_ledger_are_reported(project: Project) -> None:
    shutil.rmtree(project.map / "ledger")
    found = project.verify(status=3)
    assert len(found["broken"]) == 9
    assert found["broken"][0].startswith("small/y0_x0: is not in the ledger")


def test_damaged_ledger_is_reported(project: Project) -> None:
    segment = min((project.map / "ledger").glob("*.parquet"))
    segment.write_bytes(segment.read_bytes()[:-30])
    (line,) = project.verify(status=3)["broken"]
    assert line.startswith("ledger: ")
    assert "is damaged" in line


def test_long_lists_of_corrupt_tiles_are_truncated(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.inspection.verify_map.NAMED", 2)
    shutil.rmtree(project.map / "ledger")
    assert "  and 7 more; --json lists them all" in project.run("verify", status=3).stdout


def test_scene_prepared_again_makes_tiles_stale_but_map_stays_valid(project: Project) -> None:
    config = yaml.safe_load((project.folder / "small.yaml").read_text())
    source = config["scenes"][0]["sources"]["optical"]
    with rasterio.open(source["url"]) as dataset:
        optical = dataset.read()
    optical[:, 140:, 129] = 0  # now nodata; the last rows are in a separate shard
    source["url"] = str(write_raster(project.folder / "changed.tif", optical, nodata=0))
    (project.folder / "small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    project.run("prepare", "--set", "prepare.shard=128")
    found = project.verify("--sample", "9")
    assert found["intact"], found
    stale, elsewhere = found["notes"]
    assert "tiles are stale: the input changed (small/y" in stale
    assert "in 1 of the stale tiles, coverage differs from where the scene now has data" in elsewhere
    assert 0 < found["sampled"] < 9, "only tiles that are not stale are recomputed"
    project.run("map")
    assert project.verify()["notes"] == []


@pytest.mark.parametrize(
    ("key", "note"),
    [
        ("map.products=[class]", "the products (was class uint8, confidence uint16, sources uint8, is class uint8)"),
        ("map.dtype=uint8", "confidence uint16, sources uint8, is class uint8, confidence uint8"),
        ("map.tile_size=128", "map.tile_size (was 64, is 128)"),
        ("map.missing=nodata", "map.missing (was declared, is nodata)"),
        ("prediction.priors=uniform", ""),
    ],
)
def test_changed_configuration_is_noted_and_map_still_checked(project: Project, key: str, note: str) -> None:
    """The map is checked as it was made; the current configuration only adds a note."""
    if not note:  # a model without class frequencies has no other priors
        found = project.verify("--set", key)
        assert "not compared with the current scene and model" in found["notes"][0]
    else:
        found = project.verify("--set", key, "--sample", "1")
        assert found["notes"][0].startswith("changed since the map was made: ")
        assert note in found["notes"][0]
        assert "no tile can be recomputed" in found["notes"][-1]
    assert found["intact"], found
    assert found["tiles"] == 9
    flip(project.map / "class.tif", (project.map / "class.tif").stat().st_size - 3)
    assert "class.tif: " in project.verify("--set", key, status=3)["broken"][0]


def test_changed_model_makes_all_tiles_stale(project: Project) -> None:
    write_model(project.folder, seed=1)
    path = project.folder / "small.yaml"
    path.write_text(
        path.read_text().replace(yaml.safe_load(path.read_text())["map"]["model"], str(project.folder / "model"))
    )
    found = project.verify("--sample", "1")
    assert found["intact"]
    assert "the model (was " in found["notes"][0]
    assert "9 of 9 tiles are stale: the model changed" in found["notes"][1]
    assert found["sampled"] == 0


def test_missing_model_still_checks_published_files(project: Project) -> None:
    """Published files can still be compared with their recorded checksums."""
    gone = ("--set", f"map.model={project.folder / 'nowhere'}")
    found = project.verify(*gone)
    assert found["intact"]
    assert "not compared with the current scene and model" in found["notes"][0]
    flip(project.map / "quicklook.png", 100)
    assert "quicklook.png: its checksum differs" in project.verify(*gone, status=3)["broken"][0]


def test_remapped_but_unpublished_tiles_are_noted(project: Project) -> None:
    """An unfinished later run leaves the previously published map, which is intact."""
    ledger = Ledger.open(str(project.map / "ledger"))
    window, before = next(iter(ledger.last().items()))
    ledger.append(
        [LedgerEvent(tile=Tile("small", window), state="done", fingerprint=before.fingerprint, checksum="another")]
    )
    ledger.close()
    found = project.verify()
    assert found["intact"]
    assert found["notes"] == ["1 of 9 tiles were mapped again but are not yet published; run `mibf map`"]


def test_corrupt_store_is_noted_and_map_still_checked(project: Project) -> None:
    flip(project.folder / "work/stores/small.zarr/valid/optical/c/0/0", 10)
    found = project.verify("--sample", "1", status=3)
    assert found["intact"]
    assert found["notes"][0].endswith("current scene and model: its store is corrupt")
