"""Invalid map inputs: exit status 2, a message with the fix, nothing written. Also maps by an external model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest

from jobs.config.config import ResourcesSection
from jobs.config.loader import load
from jobs.map.stage import LONGEST_WARNING, map_scenes
from jobs.runtime import ray_cluster
from jobs.runtime.worker_resources import WorkerResources
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io.lease import Lease
from tests.support.mapped_scene import TILES, Mapped
from tests.support.scenes import write_raster

pytestmark = pytest.mark.slow


@pytest.fixture
def mapped(trained: Mapped, tmp_path: Path) -> Mapped:
    """A private copy of the trained scene, without a map."""
    return trained.copy(tmp_path / "scene")


def move_model(mapped: Mapped) -> Path:
    """Move the model out of the workspace and return its path."""
    return Path(shutil.move(mapped.folder / "work/models/main", mapped.folder / "model"))


def drop_band(mapped: Mapped) -> list[str]:
    write_raster(mapped.folder / "optical.tif", mapped.scene.optical[:2], nodata=0)
    mapped.does("prepare")
    return [f"map.model={move_model(mapped)}"]


def rename_radar_source(mapped: Mapped) -> list[str]:
    with mapped.changed() as values:
        sources = values["scenes"][0]["sources"]
        sources["sonar"] = sources.pop("radar")
    mapped.does("prepare")
    return [f"map.model={move_model(mapped)}"]


def truncate_weights(mapped: Mapped) -> list[str]:
    model = move_model(mapped)
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return [f"map.model={model}"]


def flip_bit_in_weights(mapped: Mapped) -> list[str]:
    weights = mapped.folder / "work/models/main/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(bytes(content))
    return []


def delete_weights(mapped: Mapped) -> list[str]:
    (mapped.folder / "work/models/main/weights.safetensors").unlink()
    return []


def missing_model_path(mapped: Mapped) -> list[str]:
    return [f"map.model={mapped.folder}/nowhere"]


def rename_class(mapped: Mapped) -> list[str]:
    with mapped.changed() as values:
        values["classes"][1]["name"] = "wood"
    return []


def delete_shard_records(mapped: Mapped) -> list[str]:
    (mapped.folder / "work/stores/small.shards.json").unlink()
    return []


def delete_store(mapped: Mapped) -> list[str]:
    shutil.rmtree(mapped.folder / "work/stores/small.zarr")
    return []


def delete_prepare_manifest(mapped: Mapped) -> list[str]:
    (mapped.folder / "work/manifests/prepare.json").unlink()
    return []


def map_missing_sources(_: Mapped) -> list[str]:
    return ["map.missing=map"]


def brighten_optical(mapped: Mapped) -> list[str]:
    write_raster(mapped.folder / "optical.tif", mapped.scene.optical * 3, nodata=0)
    mapped.does("prepare")
    return ["map.drift=refuse"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop_band,
            "optical (2 bands), radar (1 bands); the model was trained on optical (3 bands), radar (1 bands)",
        ),
        (rename_radar_source, "the model was trained on optical (3 bands), radar (1 bands)"),
        (truncate_weights, "weights.safetensors"),
        (flip_bit_in_weights, "weights.safetensors"),
        (delete_weights, "has model.json but no weights.safetensors; copy all files of the bundle again"),
        (missing_model_path, "nowhere"),
        (
            rename_class,
            "predicts the classes 1 water, 2 forest, 5 town; the configuration declares 1 water, 2 wood, 5 town",
        ),
        (delete_shard_records, "small.shards.json: is missing; run `mibf prepare` again"),
        (delete_store, "small.zarr"),
        (delete_prepare_manifest, "`prepare` is not finished; run `mibf prepare` or `mibf run` first"),
        (map_missing_sources, "map.missing is `map`, but"),
        (brighten_optical, "differs from the model's training data"),
    ],
)
def test_mismatched_input_is_rejected_and_nothing_is_written(
    mapped: Mapped, change: Callable[[Mapped], list[str]], message: str
) -> None:
    parts = change(mapped)
    before = mapped.files()
    for command in ("map", "rerun", "status"):
        if command == "status" and change == brighten_optical:
            continue  # status reports tile states, which drift does not affect
        assert message in mapped.does(command, *parts, status=2).stderr
    assert mapped.files() == before


def test_precision_that_the_gpu_lacks_is_refused(mapped: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Tesla P4")
    before = {path: path.stat().st_mtime_ns for path in mapped.folder.rglob("*") if path.is_file()}
    refused = mapped.mibf("map", "map.precision=bf16")
    assert refused.status == 2
    assert "map.precision is bf16, which Tesla P4 does not support; use fp16 or float32." in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in mapped.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("workers", [0, 2])
def test_precision_that_needs_a_gpu_is_refused_before_anything_is_written(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(ray_cluster, "ensure", lambda **_: None)
    monkeypatch.setattr(ray_cluster, "check_shared", lambda _: None)
    monkeypatch.setattr(ray_cluster, "share_cluster", lambda *_, **__: WorkerResources(2, 1, 0))
    before = {path: path.stat().st_mtime_ns for path in mapped.folder.rglob("*") if path.is_file()}
    refused = mapped.mibf("map", "map.precision=fp16", f"map.workers={workers}")
    assert refused.status == 2
    assert "map.precision is fp16, which needs a GPU, and none was found" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in mapped.folder.rglob("*") if path.is_file()} == before


def test_drifted_scene_is_mapped_with_warning_when_drift_is_warn(mapped: Mapped) -> None:
    brighten_optical(mapped)
    warned = mapped.does("map", "map.drift=warn")
    (line,) = (line for line in warned.stderr.splitlines() if "differs from the model's training data: optical" in line)
    assert "constant factor of about 3.0" in line
    assert len(line) <= len("warning: ") + LONGEST_WARNING
    assert mapped.states() == {"done": 9}


def test_drift_of_the_scene_that_the_model_was_trained_on_is_not_reported(mapped: Mapped) -> None:
    """Its unlabelled part may differ from its training pixels; a store with other limits is compared."""
    done = mapped.does("map", "map.drift=refuse", "map.drift_distance=1e-6")
    assert "differs from the model's training data" not in done.stderr
    path = mapped.folder / "work/scaling.json"
    limits = json.loads(path.read_text())
    limits["optical"]["high"][0] += 1.0
    path.write_text(json.dumps(limits))
    refused = mapped.does("map", "map.drift=refuse", "map.drift_distance=1e-6", status=2)
    assert "differs from the model's training data" in refused.stderr


def test_unlabelled_scene_is_mapped_by_an_external_model(reference: Mapped, trained: Mapped, tmp_path: Path) -> None:
    """Without labels, `mibf run` skips train, evaluate and report and runs only `prepare` and `map`."""
    other = trained.copy(tmp_path / "other")
    shutil.rmtree(other.folder / "work")
    with other.changed() as values:
        del values["scenes"][0]["labels"]
    model = f"map.model={trained.folder / 'work' / 'models' / 'main'}"
    done = other.does("run", model, "--json")
    assert [stage["stage"] for stage in done.json["stages"]] == ["prepare", "map"]
    assert not (other.folder / "work/models").exists()
    assert other.states(model) == {"done": 9}
    assert other.count("done") == dict.fromkeys(TILES, 1)
    for product in ("class", "confidence"):
        np.testing.assert_array_equal(other.pixels(product), reference.pixels(product))
    again = other.does("run", model, "--json")
    assert all(stage["skipped"] for stage in again.json["stages"])


class SharedWorkers:
    """Workers of several runs, which must not map."""

    def start(self, workers: int, resources: ResourcesSection) -> int:
        """Start nothing."""
        del resources
        return workers

    def map(self, *_: object, **__: object) -> None:
        """Fail."""
        raise AssertionError("a tile was mapped")


@pytest.mark.parametrize("shared", [False, True], ids=["own workers", "shared workers"])
def test_workspace_that_a_node_does_not_see_is_refused_before_anything_is_written(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    asked: list[str] = []

    def refuse(urls: Collection[str]) -> None:
        asked.extend(urls)
        raise InputError("Ray node 10.0.0.2 does not find the store")

    monkeypatch.setattr(ray_cluster, "ensure", lambda **_: None)
    monkeypatch.setattr(ray_cluster, "check_shared", refuse)
    before = mapped.files()
    if shared:
        config = load(str(mapped.config), overrides=["map.workers=2"])
        with pytest.raises(InputError, match=r"Ray node 10\.0\.0\.2 does not find the store"):
            map_scenes(config, Workspace.of(config), "", Lease(), workers=SharedWorkers())
    else:
        refused = mapped.does("map", "map.workers=2", status=2)
        assert "Ray node 10.0.0.2 does not find the store" in refused.stderr
    assert asked == [str(mapped.folder / "work" / "stores" / "small.zarr" / "zarr.json")]
    assert mapped.files() == before
