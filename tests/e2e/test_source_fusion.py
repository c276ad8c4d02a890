"""Fusion of two sources, and prediction with one source missing after source dropout. Trained without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mibf.bundle.bundle import Bundle
from pipeline.io.model_bundle import read_bundle
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore
from tests.support import commands
from tests.support.scenes import COLUMNS, ROWS, SmallScene, write_raster

TRAIN_SETTINGS = ("train.recipe=standard", "train.workers=0", "train.threads=1", "train.epochs=4", "train.batch_size=128")


def mibf(*arguments: str) -> Any:
    result = commands.mibf(*arguments, "--json")
    assert result.status == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_two_sources_classify_what_neither_can_alone(tmp_path: Path) -> None:
    mibf("synth", str(tmp_path / "toy"), "--size", "192", "--bands", "4+2", "--labelled", "0.4")
    config = str(tmp_path / "toy/synth.yaml")
    settings = [part for key in TRAIN_SETTINGS for part in ("--set", key)]
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
def test_model_trained_with_source_dropout_works_without_one_source(tmp_path: Path) -> None:
    """Each source separates the classes in a different order, so their medians indicate different classes."""
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
        found[run] = [accuracy(bundle, store, missing_source) for missing_source in (None, "optical", "radar")]
    assert found["never"][0] >= 0.95
    assert found["never"][1] <= 0.85
    assert min(found["dropout"]) >= 0.95


def accuracy(bundle: Bundle, store: PatchStore, missing_source: str | None) -> float:
    """Return the overall accuracy on test pixels with one source missing, filled as in mapping."""
    names = [source.name for source in bundle.spec.sources]
    network, right, samples = bundle.network(), 0, 0
    for batch in Sampler([store], bundle.scaling, bundle.spec.patch, "test").in_order(batch=1024):
        constants = [bundle.scaling[name].filled[:, None, None] for name in names]
        sources = [
            torch.from_numpy(np.broadcast_to(constant, x.shape).copy() if name == missing_source else x)
            for name, x, constant in zip(names, batch.sources, constants, strict=True)
        ]
        with torch.no_grad():
            right += int((network(sources).logits.argmax(dim=1).numpy() == batch.labels).sum())
        samples += len(batch.labels)
    return right / samples
