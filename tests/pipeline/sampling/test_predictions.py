"""Classification of a subset in parts: the metrics of one process, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pipeline.sampling.predictions
import pipeline.sampling.sample_blocks
from mibf.bundle.bundle import Bundle
from mibf.class_priors import Priors
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.sampling.predictions import Counted, Predictions, joined, parts, predict, predict_part
from pipeline.sampling.sample_blocks import block_counts, block_side
from tests.support.memory_store import PATCH, MemoryStore, make_sampler, scattered_labels


@pytest.fixture
def bundle() -> Bundle:
    sources = (SourceSpec("source 1", 2, WIDE, 1), SourceSpec("source 2", 2, NARROW, 2))
    spec = NetworkSpec(sources, classes=3, patch=PATCH)
    torch.manual_seed(0)
    store = MemoryStore(scattered_labels((8, 8), (0.1, 0.1, 0.1)))
    return Bundle.of_network(
        spec=spec,
        weights=MIBFNet(spec).state_dict(),
        scaling=make_sampler(store).scaling,
        classes=store.classes,
        temperature=1.3,
        priors=Priors.of([900, 90, 10], [0.5, 0.3, 0.2]),
    )


@pytest.mark.parametrize("is_single", [True, False])
def test_parts_add_up_to_the_bits_of_the_whole(bundle: Bundle, is_single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.sampling.predictions, "BATCH", 32)
    monkeypatch.setattr(pipeline.sampling.predictions, "PART", 96)
    if not is_single:
        monkeypatch.setattr(Bundle, "single", None)
    store = MemoryStore(scattered_labels((300, 200), (0.006, 0.003, 0.001)))
    sampler = make_sampler(store, subset="validation")
    counted = Counted("uniform", 40)
    whole = predict(bundle, sampler, 0.001, lambda samples: None, counted=counted)
    cut = parts(bundle, sampler)
    assert len(cut) > 2
    assert sum(part.samples for part in cut) == sampler.samples() > 300
    found = joined(bundle, [predict_part(bundle, sampler, 0.001, part, counted) for part in cut])
    for one, other in zip(
        (whole.uncalibrated, *whole.by_priors.values()), (found.uncalibrated, *found.by_priors.values()), strict=True
    ):
        assert one.figures() == other.figures()
        assert (one.sums == other.sums).all()
    assert list(found.by_priors) == list(whole.by_priors)
    _check_blocks(store, whole, found)
    assert np.isfinite(whole.uncalibrated.figures()["log_loss"])


def _check_blocks(store: MemoryStore, whole: Predictions, found: Predictions) -> None:
    """Counts by block are those of the parts, add up to the metrics, and are where the samples are."""
    assert whole.blocks.keys() == found.blocks.keys()
    for key, sums in whole.blocks.items():
        for one, other in zip(sums, found.blocks[key], strict=True):
            assert (one == other).all()
    counts, reliability = block_counts(whole.blocks), whole.by_priors["uniform"]
    assert (counts.confusion.sum(axis=0) == reliability.confusion().counts).all()
    assert counts.figures()["ece"] == reliability.figures()["ece"]
    y, x = np.nonzero(store.samples(Window(0, 0, *store.shape))["validation"] != UNLABELLED)
    places, samples = np.unique(np.stack([y // 40, x // 40]), axis=1, return_counts=True)
    expected = {(store.url, int(row), int(column)): n for (row, column), n in zip(places.T, samples, strict=True)}
    assert {key: confusion.sum() for key, (confusion, _) in whole.blocks.items()} == expected


def test_blocks_are_enlarged_until_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make_sampler(MemoryStore(scattered_labels((300, 200), (0.006, 0.003, 0.001))), subset="validation")
    assert block_side([sampler], 64) == 64
    monkeypatch.setattr(pipeline.sampling.sample_blocks, "MOST_BLOCKS", 4)
    assert block_side([sampler], 64) in (128, 256)
