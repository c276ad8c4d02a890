"""`mibf map` keeps a STAC catalog of the workspace's maps, and publishes small files again without mapping."""

from __future__ import annotations

from pathlib import Path

import pystac

from mibf.bundle.bundle import MODEL
from tests.support.mapped_scene import Mapped


def test_catalog_leads_from_the_workspace_to_map_and_model(reference: Mapped) -> None:
    root = reference.folder / "work/catalog.json"
    (item,) = pystac.Catalog.from_file(str(root)).get_items(recursive=True)
    assert (item.id, item.collection_id, item.properties["title"]) == ("small-small-main", "small-main", "small, run main")
    assert item.assets["class"].get_absolute_href() == str(reference.map / "class.tif")
    model = item.get_single_link("derived_from")
    assert model is not None
    read = pystac.Item.from_file(str(model.get_absolute_href()))
    weights = [asset.get_absolute_href() for asset in read.assets.values() if "mlm:model" in (asset.roles or [])]
    assert weights == [str(reference.folder / "work/models/main/weights.safetensors")]
    assert Path(str(read.get_self_href())).name == MODEL


def test_lost_style_is_published_again_without_mapping(reference: Mapped, tmp_path: Path) -> None:
    copy = reference.copy(tmp_path / "scene")
    before = copy.published()
    for name in ("class.qml", "class.tif.aux.xml"):
        (copy.map / name).unlink()
    (copy.folder / "work/catalog.json").unlink()
    copy.does("map")
    assert copy.published() == before
    assert len(copy.events("done")) == len(reference.events("done")), "no tile was mapped"
    for name in ("class.qml", "class.tif.aux.xml"):
        assert (copy.map / name).read_bytes() == (reference.map / name).read_bytes()
    assert (copy.folder / "work/catalog.json").exists()
