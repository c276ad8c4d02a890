"""`mibf train`, `evaluate` and `report` with an empty validation split or an ablated network; trained without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.report.stage import report
from jobs.workflow.manifest import Manifest
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import CARD
from pipeline.io import storage
from pipeline.io.lease import Lease
from tests.support import commands
from tests.support.scenes import SmallScene, make_scene, write_raster

TRAIN = {"epochs": 1, "batch_size": 64, "learning_rate": 3e-3, "workers": 0, "threads": 1}


def mibf(*arguments: str) -> str:
    result = commands.mibf(*arguments)
    assert result.status == 0, result.stderr
    return result.stdout


def refused(*arguments: str) -> str:
    result = commands.mibf(*arguments)
    assert result.status == 2, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallScene, str]:
    """A scene with no validation pixels and a single-source network without optional parts, trained and evaluated."""
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
    """Write the report with constant rasters instead of map products and return its HTML."""
    workspace = Workspace.of(config)
    for product in config.map.products:
        place = Path(workspace.map_folder(config.scenes[0].name))
        place.mkdir(parents=True, exist_ok=True)
        kind = np.uint8 if product == "class" else np.uint16
        write_raster(place / f"{product}.tif", np.ones((1, 150, 130), kind))
    report(config, workspace, "fingerprint", Lease())
    return storage.read_bytes(workspace.report).decode()


def test_card_and_report_state_that_there_were_no_validation_pixels(alone: tuple[SmallScene, str]) -> None:
    config = load(alone[1])
    workspace = Workspace.of(config)
    assert sum(storage.read_json(workspace.split)["counts"]["validation"].values()) == 0
    card = storage.read_bytes(storage.join(workspace.bundle, CARD)).decode()
    assert "The model is that of epoch 1, the last one." in card
    assert "confidences are not calibrated" in card
    page = page_of(config)
    assert "The model is from epoch 1, the last one." in page
    assert "no temperature was fitted" in page
    assert "fitted on validation pixels" not in page


def test_report_notes_that_map_priors_differ_from_those_of_its_metrics(alone: tuple[SmallScene, str]) -> None:
    config = load(alone[1])
    assert "not those of the map" not in page_of(config)
    manifest = Manifest("map", "f", "now", 1.0, 1, figures={"priors": "uniform"})
    storage.write_json(Workspace.of(config).manifest("map"), vars(manifest))
    page = page_of(config)
    assert "The other metrics on this page are for trained priors" in page
    assert "<b>uniform</b>" in page


def test_report_shows_sources_that_the_network_does_not_use(alone: tuple[SmallScene, str]) -> None:
    page = page_of(load(alone[1]))
    assert "optical: band" in page
    assert "radar: band" in page


def test_map_rejects_products_the_network_lacks_before_writing(alone: tuple[SmallScene, str]) -> None:
    scene, config = alone
    before = sorted((scene.folder / "work").rglob("*"))
    assert "was trained without the bottleneck" in refused("map", config, "--set", "map.products=[class, kl]")
    assert sorted((scene.folder / "work").rglob("*")) == before


def test_retraining_removes_models_of_dropped_seeds(alone: tuple[SmallScene, str]) -> None:
    models = alone[0].folder / "work/models/several"
    mibf("train", alone[1], "--set", "run=several", "--set", "train.seeds=[0, 1]")
    assert {p.name for p in models.iterdir() if p.is_dir()} == {"seed-0", "seed-1"}
    mibf("train", alone[1], "--set", "run=several", "--set", "train.seeds=[1]")
    assert not [p for p in models.iterdir() if p.is_dir()]


def test_train_rejects_settings_that_do_not_fit_the_prepared_samples(scene: SmallScene) -> None:
    config = str(scene.write_config(train=TRAIN))
    mibf("prepare", config)
    message = refused("train", config, "--set", "sampling.epoch_fraction=0.001")
    assert "train.batch_size is 64, but an epoch has only" in message
    assert "sampling.epoch_fraction is 0.001" in message
    message = refused("train", config, "--set", "model.patch=7")
    assert "the buffer between subsets is 4 pixels, but patches of 7 pixels need 6" in message
    assert "run `mibf prepare`" in message
