"""What `mibf train`, `evaluate` and `report` make of splits and networks that lack something; trained without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.config import Config, load
from jobs.report import report
from jobs.stages import Manifest
from jobs.workspace import Workspace
from mibf.bundle import CARD
from pipeline import storage
from pipeline.lease import Lease
from tests.conftest import SmallScene, make_scene, write_raster

TRAIN = {"epochs": 1, "batch": 64, "rate": 3e-3, "workers": 0, "threads": 1}


def mibf(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallScene, str]:
    """A scene whose random split has nothing to validate on, and one source's network without any part, trained on it."""
    scene = make_scene(tmp_path_factory.mktemp("alone"))
    changes: dict[str, Any] = {
        "train": TRAIN,
        "model": {"patch": 5, "sources": ["radar"], "without": ["noise", "relation", "bottleneck"]},
        "split": {"method": "random", "train": 0.1, "validation": 0},
    }
    config = str(scene.write_config(**changes))
    for stage in ("prepare", "train", "evaluate"):
        mibf(stage, config)
    return scene, config


def page_of(config: Config) -> str:
    """The report, with maps of nothing in place of those that are due."""
    workspace = Workspace.of(config)
    for product in config.map.products:
        place = Path(workspace.map_folder(config.scenes[0].name))
        place.mkdir(parents=True, exist_ok=True)
        kind = np.uint8 if product == "class" else np.uint16
        write_raster(place / f"{product}.tif", np.ones((1, 150, 130), kind))
    report(config, workspace, "fingerprint", Lease())
    return storage.read_bytes(workspace.report).decode()


def test_a_split_without_validation_pixels_says_so_to_the_end(alone: tuple[SmallScene, str]) -> None:
    config = load(alone[1])
    workspace = Workspace.of(config)
    assert sum(storage.read_json(workspace.split)["counts"]["validation"].values()) == 0
    told = storage.read_bytes(storage.join(workspace.bundle, CARD)).decode()
    assert "Epoch 1, the last one, is the model." in told
    assert "confidences are not calibrated" in told
    page = page_of(config)
    assert "Epoch 1, the last one, is the model." in page
    assert "no temperature was fitted" in page
    assert "fitted on validation pixels" not in page


def test_the_report_tells_of_a_map_for_other_class_frequencies_than_its_figures(alone: tuple[SmallScene, str]) -> None:
    config = load(alone[1])
    assert "not of the map" not in page_of(config)
    manifest = Manifest("map", "f", "now", 1.0, 1, figures={"priors": "uniform"})
    storage.write_json(Workspace.of(config).manifest("map"), vars(manifest))
    page = page_of(config)
    assert "The other figures of this page are for trained ones" in page
    assert "<b>uniform</b>" in page


def test_the_report_shows_sources_that_the_network_does_not_take(alone: tuple[SmallScene, str]) -> None:
    page = page_of(load(alone[1]))
    assert "optical: band" in page
    assert "radar: band" in page


def test_products_that_a_network_cannot_give_are_refused_before_anything_is_written(alone: tuple[SmallScene, str]) -> None:
    scene, config = alone
    there = sorted((scene.folder / "work").rglob("*"))
    assert "was trained without the bottleneck" in refused("map", config, "--set", "map.products=[class, rate]")
    assert sorted((scene.folder / "work").rglob("*")) == there


def test_models_of_seeds_that_are_not_wanted_any_more_go(alone: tuple[SmallScene, str]) -> None:
    models = alone[0].folder / "work/models/several"
    mibf("train", alone[1], "--set", "run=several", "--set", "train.seeds=[0, 1]")
    assert {p.name for p in models.iterdir() if p.is_dir()} == {"seed-0", "seed-1"}
    mibf("train", alone[1], "--set", "run=several", "--set", "train.seeds=[1]")
    assert not [p for p in models.iterdir() if p.is_dir()]


def test_what_does_not_fit_the_prepared_samples_is_refused(scene: SmallScene) -> None:
    config = str(scene.write_config(train=TRAIN))
    mibf("prepare", config)
    told = refused("train", config, "--set", "sampling.rate=0.001")
    assert "train.batch is 64, more than the" in told
    assert "sampling.rate is 0.001" in told
    told = refused("train", config, "--set", "model.patch=7")
    assert "the subsets lie 4 pixels apart, and patches of 7 pixels want 6" in told
    assert "run `mibf prepare`" in told
