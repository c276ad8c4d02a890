"""Classification of a subset in parts: the metrics of one process, to the last bit."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

import pipeline.sampling.predictions
import pipeline.sampling.sample_blocks
import pipeline.sampling.sample_logits
from mibf.bundle.bundle import Bundle
from mibf.class_priors import Priors
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.sampling.drawn_pixels import every_pixel
from pipeline.sampling.predictions import Counted, Part, Predictions, joined, parts, predict, predict_part
from pipeline.sampling.sample_blocks import block_counts, block_side
from pipeline.sampling.sample_logits import SampleModel
from pipeline.sampling.sampler import Sampler
from pipeline.sampling.shuffle_buffer import PATCHES, WHOLE
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


def test_windows_that_a_device_gathers_from_give_the_bits_of_patches(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, of a part, too."""
    monkeypatch.setattr(pipeline.sampling.predictions, "BATCH", 32)
    sampler = make_sampler(MemoryStore(scattered_labels((150, 100), (0.02, 0.01, 0.01))), subset="validation")
    part = Part(64, 160, 96)
    of_patches = [predict(bundle, sampler, 0.001, lambda samples: None, part=each) for each in (None, part)]
    monkeypatch.setattr(Sampler, "in_order_for", lambda self, _, **order: self.in_order_windows(**order))
    monkeypatch.setattr(Sampler, "in_order", None)
    for expected, each in zip(of_patches, (None, part), strict=True):
        found = predict(bundle, sampler, 0.001, lambda samples: None, part=each)
        assert found.uncalibrated.figures() == expected.uncalibrated.figures()
        assert (found.uncalibrated.sums == expected.uncalibrated.sums).all()


@pytest.mark.parametrize("dense", [True, False])
def test_members_get_the_same_patches_from_windows(bundle: Bundle, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few samples in a window, their patches are sent in place of the window."""
    monkeypatch.setattr(pipeline.sampling.sample_logits, "BATCH", 48)
    shares = (0.3, 0.2, 0.1) if dense else (0.006, 0.003, 0.001)
    store = MemoryStore(scattered_labels((150, 100), shares))
    cut, gathered = SampleModel(bundle), SampleModel(bundle)
    vars(gathered)["_sends_windows"] = True  # as on a GPU
    for pixels in every_pixel([store], "validation"):
        given, other = (model.read(store, pixels) for model in (cut, gathered))
        assert other.buffer is not None
        assert (other.buffer.kinds == (WHOLE if dense else PATCHES)).all()
        for start in range(0, len(pixels.rows), 48):
            parts = slice(start, start + 48)
            for ours, theirs in zip(gathered._patches(other, parts), cut._patches(given, parts), strict=True):
                assert torch.equal(ours, theirs)
        for (ours, labels), (theirs, _) in islice(zip(gathered.compute(other), cut.compute(given), strict=True), 2):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            assert len(labels) == len(ours[0])


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
