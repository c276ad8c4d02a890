"""Two sources tell what neither tells alone; and one is enough where training lost the other. Trained without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mibf.bundle import Bundle
from pipeline.batches import Sampler
from pipeline.bundles import read_bundle
from pipeline.store import PatchStore
from tests.conftest import COLUMNS, ROWS, SmallScene, write_raster

OF_TRAINING = ("train.workers=0", "train.threads=1", "train.epochs=4", "train.batch=128")


def mibf(*arguments: str) -> Any:
    result = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments, "--json"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_two_sources_tell_what_neither_tells_alone(tmp_path: Path) -> None:
    mibf("synth", str(tmp_path / "toy"), "--size", "192", "--bands", "4+2", "--labelled", "0.4")
    config = str(tmp_path / "toy/synth.yaml")
    settings = [part for key in OF_TRAINING for part in ("--set", key)]
    mibf("prepare", config, *settings)
    found = {}
    for variant, model in (
        ("both", {}),
        ("first", {"sources": ["source1"], "without": ["noise", "relation"]}),
        ("second", {"sources": ["source2"], "without": ["noise", "relation"]}),
    ):
        own = [*settings, "--set", f"run={variant}"]
        own += [part for key, value in model.items() for part in ("--set", f"model.{key}={json.dumps(value)}")]
        mibf("train", config, *own)
        found[variant] = mibf("evaluate", config, *own)["stages"][0]["figures"]["overall_accuracy"]
    assert found["both"] >= 0.95
    assert found["first"] <= 0.6
    assert found["second"] <= 0.6


@pytest.mark.slow
def test_a_model_whose_training_lost_sources_maps_without_one_of_them(tmp_path: Path) -> None:
    """Each source tells the classes, in another order: one's median is the middle class, and the other says otherwise."""
    generator = np.random.default_rng(7)
    kind = np.kron(generator.integers(0, 3, (ROWS // 10, COLUMNS // 10)), np.ones((10, 10), int))
    truth = np.array([1, 2, 5], np.uint8)[kind]
    optical = (generator.normal(0, 60, (3, ROWS, COLUMNS)) + 1000 + 300 * kind).astype(np.uint16)
    radar = (generator.normal(0, 0.3, (1, ROWS, COLUMNS)) + (kind + 1) % 3).astype(np.float32)
    for name, values in (("optical", optical), ("radar", radar), ("labels", truth[None])):
        write_raster(tmp_path / f"{name}.tif", values)
    config = str(SmallScene(tmp_path, truth, optical).write_config())
    mibf("prepare", config)
    found = {}
    for run, share in (("never", 0.0), ("dropout", 0.3)):
        own = ["train.workers=0", "train.threads=1", f"train.source_dropout={share}", f"run={run}"]
        mibf("train", config, *(part for key in own for part in ("--set", key)))
        bundle = read_bundle(str(tmp_path / "work/models" / run))
        assert bundle.source_dropout == share
        store = PatchStore(str(tmp_path / "work/stores/small.zarr"))
        found[run] = [accuracy(bundle, store, lost) for lost in (None, "optical", "radar")]
    assert found["never"][0] >= 0.95
    assert found["never"][1] <= 0.85
    assert min(found["dropout"]) >= 0.95


def accuracy(bundle: Bundle, store: PatchStore, lost: str | None) -> float:
    """The overall accuracy on test pixels where a source has no data, as a map shows it to the network."""
    names = [source.name for source in bundle.spec.sources]
    network, right, samples = bundle.network(), 0, 0
    for batch in Sampler([store], bundle.scaling, bundle.spec.patch, "test").in_order(batch=1024):
        missing = [bundle.scaling[name].filled[:, None, None] for name in names]
        sources = [
            torch.from_numpy(np.broadcast_to(constant, x.shape).copy() if name == lost else x)
            for name, x, constant in zip(names, batch.sources, missing, strict=True)
        ]
        with torch.no_grad():
            right += int((network(sources).logits.argmax(dim=1).numpy() == batch.labels).sum())
        samples += len(batch.labels)
    return right / samples
