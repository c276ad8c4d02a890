"""Many scenes in one map: each is published once its last tile is done, and an error in one does not lose the others."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.map.many_scenes import Publisher, each_scene
from jobs.map.scene_map import SceneMap
from mibf.errors import InputError
from pipeline.grid import Tile
from pipeline.io.lease import LeaseLostError
from pipeline.maps.map_store import MapStore
from pipeline.maps.predictor import TileInput, TilePredictor
from pipeline.publishing import publish_map
from pipeline.publishing.publish import PublishError
from pipeline.store.patch_store import PatchStore
from tests.support.mapped_scene import Mapped
from tests.support.waiting import await_


def two_scenes(trained: Mapped, folder: Path) -> Mapped:
    """A trained scene and a copy of it, `again`, mapped by one configuration."""
    mapped = trained.copy(folder)
    stores = mapped.folder / "work/stores"
    shutil.copytree(stores / "small.zarr", stores / "again.zarr")
    shutil.copy(stores / "small.shards.json", stores / "again.shards.json")
    with mapped.changed() as values:
        (one,) = values["scenes"]
        values["scenes"] = [one, {**one, "name": "again"}]
    return mapped


def test_scene_is_published_while_another_is_mapped(
    trained: Mapped, reference: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = two_scenes(trained, tmp_path / "scenes")
    item = mapped.map / "item.json"
    read, waited = TilePredictor.read, []

    def patient(predictor: TilePredictor, store: PatchStore, tile: Tile) -> TileInput:
        if tile.key == "again/y128_x128":
            await_(item.exists, 60)
            waited.append(tile)
        return read(predictor, store, tile)

    monkeypatch.setattr(TilePredictor, "read", patient)
    mapped.does("map")
    assert len(waited) == 1
    for name in ("small", "again"):
        published = mapped.folder / f"work/maps/{name}/main/class.tif"
        assert published.read_bytes() == reference.published()["class.tif"]
        assert not (published.parent / "map.zarr").exists()


def test_error_in_publishing_one_scene_does_not_lose_another(
    trained: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = two_scenes(trained, tmp_path / "scenes")
    replaced = publish_map.replace_published

    def failing(folder: str, *arguments: Any, **named: Any) -> None:
        if "/small/" in folder:
            raise PublishError("the disk is full")
        replaced(folder, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(publish_map, "replace_published", failing)
        found = mapped.does("map", status=1)
    assert "small: could not be published (the disk is full); the other scenes continue" in found.stderr
    assert (mapped.folder / "work/maps/again/main/item.json").exists()
    assert not (mapped.map / "item.json").exists()
    done = mapped.does("rerun", "--json").json
    assert (done["tiles_mapped"], done["scenes_published"]) == (0, 1)


def scene(name: str) -> SceneMap:
    stand_in: Any = SimpleNamespace(name=name)
    return stand_in


def test_publisher_tries_all_scenes_and_raises_the_lost_lease_first() -> None:
    errors = {"b": PublishError("full"), "c": LeaseLostError("taken over")}
    tried = []

    def publish(each: SceneMap, work: MapStore | None) -> bool:
        tried.append(each.name)
        if each.name in errors:
            raise errors[each.name]
        return work is None

    def publish_all() -> None:
        with Publisher(publish) as publisher:
            for name in "abcd":
                publisher.submit(scene(name), None)
            publisher.finish()

    with pytest.raises(LeaseLostError):
        publish_all()
    assert sorted(tried) == ["a", "b", "c", "d"]


def test_interruption_ends_publishing_of_a_scene_and_starts_no_other() -> None:
    started, ended = threading.Event(), []

    def publish(each: SceneMap, work: MapStore | None) -> bool:
        del work
        started.set()
        try:
            for _ in range(1000):
                time.sleep(0.01)
        finally:
            ended.append(each.name)
        return True

    def publish_until_interrupted() -> None:
        with Publisher(publish) as publisher:
            for name in "abcd":
                publisher.submit(scene(name), None)
            started.wait()
            raise KeyboardInterrupt

    clock = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        publish_until_interrupted()
    assert time.monotonic() - clock < 5
    assert set(ended) <= {"a", "b"}


def test_each_scene_raises_the_error_of_the_first_scene() -> None:
    def fail(name: str) -> str:
        if name == "a":
            return name
        time.sleep(0.1 if name == "b" else 0)
        raise InputError(name)

    with pytest.raises(InputError, match="b"):
        each_scene(fail, {name: name for name in "abc"})
