"""A page is published, kept, replaced and removed with its map: it is part of the set that the item lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.io import checksums, storage
from pipeline.io.lease import Lease
from pipeline.publishing.page.page_file import STATIC, is_page_file
from pipeline.publishing.publish import finish_interrupted
from pipeline.publishing.stac_fields.rights import Rights
from pipeline.publishing.stac_item import check_item
from pipeline.publishing.stac_item_reader import read_item
from tests.support.mapped_scene import Mapped
from tests.support.page_maps import GRIDS, MARKERS, SQUARE, marked, publish_page_map

PAGE = {*STATIC, "tiles.json"}


def test_item_lists_every_file_of_the_page_and_counts_classes(tmp_path: Path) -> None:
    folder = publish_page_map(tmp_path, GRIDS["utm"], {"class": marked(GRIDS["utm"])})
    found = read_item(str(folder))
    assert found is not None
    check_item(found.item)
    listed = {file.name: (file.bytes, file.sha256) for file in found.files}
    assert {"class.tif", "class.tif.aux.xml", "class.qml", "quicklook.png", "overview_source0.webp", *PAGE} == set(listed)
    assert all(checksums.sha256(str(folder / name)) == listed[name] for name in listed)
    counts = found.item["properties"]["mibf:class_pixels"]
    assert counts == {**dict.fromkeys(map(str, MARKERS), SQUARE**2), "1": 700 * 600 - 3 * SQUARE**2}


def test_products_without_classes_have_a_page_too(tmp_path: Path) -> None:
    codes = np.full((1, 700, 600), 5000, np.uint16)
    folder = publish_page_map(tmp_path, GRIDS["no crs"], {"confidence": codes}, block=512)
    item = json.loads((folder / "item.json").read_text())
    assert "mibf:class_pixels" not in item["properties"]
    assert "index.html" in item["assets"]


def test_interrupted_replacement_is_completed_with_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = publish_page_map(tmp_path, GRIDS["utm"], {"class": marked(GRIDS["utm"])})
    move = storage.move_file

    def fail_at_the_page(url: str, target: str) -> None:
        if target.endswith("view.js"):
            raise OSError("the disk is gone")
        move(url, target)

    monkeypatch.setattr(storage, "move_file", fail_at_the_page)
    with pytest.raises(OSError, match="the disk is gone"):
        publish_page_map(tmp_path, GRIDS["utm"], {"class": np.full((1, 700, 600), 2, np.uint8)})
    assert read_item(str(folder)) is None
    monkeypatch.undo()
    assert finish_interrupted(str(folder), Lease())
    found = read_item(str(folder))
    assert found is not None
    assert found.item["properties"]["mibf:class_pixels"]["2"] == 700 * 600
    assert all(checksums.sha256(str(folder / file.name)) == (file.bytes, file.sha256) for file in found.files)


def test_page_is_added_kept_and_removed_as_configured(reference: Mapped, tmp_path: Path) -> None:
    mapped = reference.copy(tmp_path / "scene")
    names = {path.name for path in mapped.map.iterdir() if path.is_file()}
    assert {"overview_labels.png", "overview_split.png", *PAGE} <= names
    rasters = {path: path.stat().st_mtime_ns for path in mapped.map.glob("*.tif")}
    shown = mapped.does("map", "map.page=false")
    assert "index.html" not in shown.stdout
    left = {path.name for path in mapped.map.iterdir() if path.is_file()}
    assert left == {name for name in names if not is_page_file(name)}
    assert "tiles mapped" not in mapped.does("map").stdout  # the page comes back, and no tile is mapped again
    assert {path.name for path in mapped.map.iterdir() if path.is_file()} == names
    licence = ("map.license=CC-BY-4.0", "map.license_url=https://example.org/text")
    assert "tiles mapped" not in mapped.does("map", *licence).stdout  # and neither is for another licence
    found = read_item(str(mapped.map))
    assert found is not None
    assert Rights.of(found.item) == Rights("CC-BY-4.0", "https://example.org/text")
    assert json.loads((mapped.folder / "work/collections/main.json").read_text())["license"] == "CC-BY-4.0"
    assert {path: path.stat().st_mtime_ns for path in mapped.map.glob("*.tif")} == rasters
    (mapped.map / "view.js").write_bytes(b"")
    assert "view.js: has 0 bytes" in mapped.does("verify", status=3).stdout
