"""Complete runs through the command line, with Ray, on small scenes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.support.commands import mibf
from tests.support.mapped_scene import assert_no_worker_died
from tests.support.scenes import COLUMNS, ROWS, SmallScene, make_scene, write_raster

pytestmark = pytest.mark.slow

#: The map section of tests whose subject is not Ray, which takes longer to start than the rest of them.
WITHOUT_RAY = {"tile_size": 64, "workers": 0}


def mibf_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as commands with Ray must be: Ray starts once in a process.

    No worker of a map may die, although the map would succeed.
    """
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, check=False)
    assert_no_worker_died(done.stderr)
    return done


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallScene, dict[str, Any]]:
    """A scene after `mibf run` with two training workers, and the run's JSON summary."""
    scene = make_scene(tmp_path_factory.mktemp("run"))
    train = {"epochs": 3, "batch_size": 64, "learning_rate": 3e-3, "workers": 2}
    result = mibf_process("run", str(scene.write_config(train=train)), "--json")
    assert result.returncode == 0, result.stderr
    return scene, json.loads(result.stdout)


def test_run_reports_all_stages_and_existing_outputs(done: tuple[SmallScene, dict[str, Any]]) -> None:
    _, summary = done
    assert [s["stage"] for s in summary["stages"]] == ["prepare", "train", "evaluate", "map", "report"]
    for stage in summary["stages"]:
        assert stage["peak_memory_bytes"] > 50e6
        for path in stage["outputs"]:
            assert Path(path).exists()


def test_fusion_separates_classes_that_no_single_source_can(done: tuple[SmallScene, dict[str, Any]]) -> None:
    """Forest is visible only in the optical source and town only in radar; each source alone confuses two classes."""
    scene, summary = done
    figures = summary["stages"][2]["figures"]
    assert figures["overall_accuracy"] > 0.85
    assert figures["overall_accuracy"] > figures["majority_share"] + 0.3
    with rasterio.open(scene.folder / "work/maps/small/main/class.tif") as dataset:
        classes = dataset.read(1)
    labelled = classes != 255
    assert labelled.sum() == ROWS * COLUMNS - 24
    assert (classes == scene.truth)[labelled].mean() > 0.85


def test_evaluation_accuracy_equals_map_accuracy_on_test_pixels(done: tuple[SmallScene, dict[str, Any]]) -> None:
    scene, summary = done
    import zarr

    store = zarr.open_group(scene.folder / "work/stores/small.zarr", mode="r")
    with rasterio.open(scene.folder / "work/maps/small/main/class.tif") as dataset:
        classes = dataset.read(1)
    labels, split = np.asarray(store["labels"][:]), np.asarray(store["split"][:])
    chosen = (split == 3) & (labels != 255) & (classes != 255)
    assert chosen.sum() == summary["stages"][2]["figures"]["samples"]
    agreement = (classes == labels)[chosen].mean()
    assert agreement == pytest.approx(summary["stages"][2]["figures"]["overall_accuracy"], abs=1e-3)


def test_run_writes_metrics_bundle_and_self_contained_report(done: tuple[SmallScene, dict[str, Any]]) -> None:
    work = done[0].folder / "work"
    lines = [json.loads(line) for line in (work / "runs/main/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    model = json.loads((work / "models/main/model.json").read_text())
    best = max(lines, key=lambda line: line["validation_overall_accuracy"])
    assert model["provenance"]["chosen"]["validation_overall_accuracy"] == best["validation_overall_accuracy"]
    assert [s["name"] for s in model["network"]["sources"]] == ["optical", "radar"]
    page = (work / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 6  # two sources, labels, split, map, confidence
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for word in ("Confusion matrix", "forest", "majority class alone", "peak memory"):
        assert word in page
    assert not (work / "maps/small/main/map.zarr").exists()


def test_second_run_skips_current_stages(done: tuple[SmallScene, dict[str, Any]]) -> None:
    scene, _ = done
    result = mibf("run", str(scene.folder / "small.yaml"), "--json")
    assert result.status == 0, result.stderr
    assert all(stage["skipped"] for stage in json.loads(result.stdout)["stages"])


def test_changed_map_settings_rerun_the_map_but_not_prepare_or_train(done: tuple[SmallScene, dict[str, Any]]) -> None:
    scene, _ = done
    path = str(scene.folder / "small.yaml")
    before = (scene.folder / "work/maps/small/main/class.tif").read_bytes()
    result = mibf_process("run", path, "--set", "map.tile_size=128", "--set", "map.workers=2", "--json")
    assert result.returncode == 0, result.stderr
    again = {s["stage"]: s["skipped"] for s in json.loads(result.stdout)["stages"]}
    assert again["prepare"]
    assert again["train"]
    assert not again["map"]
    with rasterio.MemoryFile(before) as old, old.open() as one:
        then = one.read()
    with rasterio.open(scene.folder / "work/maps/small/main/class.tif") as other:
        assert (then == other.read()).all(), "tile size and worker count do not change the map"


@pytest.fixture
def copied(done: tuple[SmallScene, dict[str, Any]], tmp_path: Path) -> list[str]:
    """Arguments with the finished run's configuration and a private copy of its workspace."""
    shutil.copytree(done[0].folder / "work", tmp_path / "work")
    return [str(done[0].folder / "small.yaml"), "--set", f"workspace={tmp_path / 'work'}"]


def test_stages_that_depend_on_a_retrained_model_run_again(copied: list[str]) -> None:
    """Running one stage alone makes later stages stale, although configuration and inputs are unchanged."""
    copied = [*copied, "--set", "train.workers=0", "--set", "map.workers=0", "--set", "train.epochs=1"]
    assert mibf("train", *copied, "--set", "train.learning_rate=1e-3").status == 0
    refused = mibf("map", *copied)
    assert refused.status == 2
    assert "contains a map made by another model" in refused.stderr
    stale = mibf("map", "--replace", *copied)
    assert stale.status == 0, stale.stderr
    assert "`train` is not current" in stale.stderr
    result = mibf("run", *copied, "--json")
    assert result.status == 0, result.stderr
    skipped = {s["stage"]: s["skipped"] for s in json.loads(result.stdout)["stages"]}
    assert skipped == {"prepare": True, "train": False, "evaluate": False, "map": False, "report": False}


def test_interrupted_training_exits_with_130_and_resumes_to_the_same_weights_with_two_workers(
    done: tuple[SmallScene, dict[str, Any]], copied: list[str], tmp_path: Path
) -> None:
    """The same seed gives identical weights, interrupted or not."""
    metrics = tmp_path / "work/runs/again/metrics.jsonl"
    arguments = [*copied, "--set", "run=again"]
    process = subprocess.Popen([sys.executable, "-m", "jobs.cli", "train", *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") >= 1):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted; run the same command again" in errors
    result = mibf_process("train", *arguments)
    assert result.returncode == 0, result.stderr
    assert "3 epochs (resumed)" in result.stdout
    assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == [1, 2, 3]
    first, again = (
        folder / "weights.safetensors" for folder in (done[0].folder / "work/models/main", tmp_path / "work/models/again")
    )
    assert again.read_bytes() == first.read_bytes()


def test_evaluate_rejects_model_trained_on_another_split(copied: list[str]) -> None:
    assert mibf("prepare", *copied, "--set", "split.seed=3").status == 0
    result = mibf("evaluate", *copied, "--set", "split.seed=3")
    assert result.status == 2
    assert "its training may have included test pixels" in result.stderr


def test_identical_scene_without_labels_gets_the_same_map(tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    near, far = make_scene(tmp_path / "near"), make_scene(tmp_path / "far")
    train = {"epochs": 1, "batch_size": 64, "learning_rate": 3e-3, "workers": 0}
    config = near.config(train=train, map=WITHOUT_RAY)
    second = {**far.config()["scenes"][0], "name": "far"}
    del second["labels"]
    config["scenes"].append(second)
    result = mibf("run", str(near.write_config(**config)), "--json")
    assert result.status == 0, result.stderr
    maps = [path for path in json.loads(result.stdout)["stages"][3]["outputs"] if path.endswith("class.tif")]
    with rasterio.open(maps[0]) as one, rasterio.open(maps[1]) as other:
        assert "/small/" in maps[0]
        assert "/far/" in maps[1]
        assert (one.read() == other.read()).all(), "equal pixels and the same model give equal maps"


def test_map_rejects_source_with_other_bands_than_in_training(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    config = str(scene.write_config(train={"epochs": 1, "batch_size": 64, "workers": 0}, map=WITHOUT_RAY))
    for stage in ("prepare", "train"):
        assert mibf(stage, config).status == 0
    write_raster(scene.folder / "optical.tif", scene.optical[:2], nodata=0)
    assert mibf("prepare", config).status == 0
    result = mibf("map", config)
    assert result.status == 2
    assert "optical (2 bands)" in result.stderr
    assert "trained on optical (3 bands)" in result.stderr
    assert not (tmp_path / "work/maps").exists()


def test_failed_tile_is_reported_and_nothing_is_published(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    config = str(scene.write_config(train={"epochs": 1, "batch_size": 64, "workers": 0}, map=WITHOUT_RAY))
    for stage in ("prepare", "train"):
        assert mibf(stage, config).status == 0
    shards = [
        p for p in (tmp_path / "work/stores/small.zarr/sources/optical").rglob("*") if p.is_file() and "json" not in p.name
    ]
    assert shards
    shards[0].write_bytes(shards[0].read_bytes()[:-40])  # as an interrupted write does
    result = mibf("map", config)
    assert result.status == 3, result.stderr
    assert "tiles failed; nothing was published" in result.stderr
    assert "small/y0_x0" in result.stderr
    assert not list((tmp_path / "work/maps").rglob("*.tif"))


def test_run_with_three_sources_without_crs(tmp_path: Path) -> None:
    from affine import Affine

    scene = make_scene(tmp_path)
    generator = np.random.default_rng(1)
    identity = {"transform": Affine.identity(), "crs": None}
    write_raster(tmp_path / "optical.tif", scene.optical, **identity, nodata=0)
    town = (generator.normal(0, 0.1, (1, ROWS, COLUMNS)) + (scene.truth == 5)).astype(np.float32)
    write_raster(tmp_path / "radar.tif", town, **identity)
    write_raster(tmp_path / "height.tif", generator.random((1, ROWS, COLUMNS)).astype(np.float64), **identity)
    write_raster(tmp_path / "labels.tif", scene.truth[None], **identity)
    config = scene.config()
    config["scenes"][0]["sources"]["height"] = {"url": str(tmp_path / "height.tif")}
    config |= {"train": config["train"] | {"epochs": 1, "workers": 0}, "map": WITHOUT_RAY}
    result = mibf("run", str(scene.write_config(**config)), "--json")
    assert result.status == 0, result.stderr
    assert json.loads(result.stdout)["stages"][2]["figures"]["overall_accuracy"] > 0.6


def test_finer_source_is_fused_at_its_native_resolution(tmp_path: Path) -> None:
    """A synthetic scene with two sources, one at 4 times the grid resolution; each alone classifies half of the pixels."""
    made = mibf("synth", str(tmp_path / "toy"), "--size", "128", "--bands", "4+1@4", "--blob", "12", "--labelled", "0.4")
    assert made.status == 0, made.stderr
    result = mibf(
        "run",
        str(tmp_path / "toy/synth.yaml"),
        "--json",
        "--set",
        "model.patch=5",
        "--set",
        "train.recipe=standard",
        "--set",
        "train.batch_size=64",
        "--set",
        "train.epochs=2",
        "--set",
        "train.workers=0",
        "--set",
        "map.tile_size=128",
        "--set",
        "map.workers=0",
    )
    assert result.status == 0, result.stderr
    stages = {stage["stage"]: stage for stage in json.loads(result.stdout)["stages"]}
    assert "at 4 times the grid resolution" in "\n".join(stages["prepare"]["lines"])
    assert stages["evaluate"]["figures"]["overall_accuracy"] > 0.85
    with (
        rasterio.open(tmp_path / "toy/work/maps/synth/main/class.tif") as mapped,
        rasterio.open(tmp_path / "toy/truth.tif") as t,
    ):
        assert (mapped.read(1) == t.read(1)).mean() > 0.85
