"""Spectral jitter, band dropout, mixup, label smoothing and dropout, against independent computations in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mibf.network.mibfnet import MIBFNet, Output
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.training.loss import objective
from mibf.training.perturbation import MixedLabels, Perturbation

FILLED = (torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0.4]))


def patches(samples: int = 2000) -> list[torch.Tensor]:
    """Patches of two sources between 0.2 and 0.8; the first sample lacks the first source."""
    torch.manual_seed(1)
    found = [0.2 + 0.6 * torch.rand(samples, 3, 5, 5), 0.2 + 0.6 * torch.rand(samples, 1, 10, 10)]
    found[0][0] = FILLED[0][:, None, None]
    return found


def test_jitter_applies_one_gain_and_one_offset_to_all_pixels_and_bands_of_a_source() -> None:
    given = patches()
    kept = [x.clone() for x in given]
    torch.manual_seed(2)
    found = Perturbation(FILLED, jitter=0.02).patches(given)
    fitted = []
    for before, after, same in zip(given, found, kept, strict=True):
        assert torch.equal(before, same), "the batch itself must not change"
        lines = [np.polyfit(x.ravel(), y.ravel(), 1) for x, y in zip(before[1:].numpy(), after[1:].numpy(), strict=True)]
        for (gain, offset), x, y in zip(lines, before[1:].numpy(), after[1:].numpy(), strict=True):
            assert np.abs(gain * x + offset - y).max() < 1e-5
        fitted.append(np.array(lines))
    for lines in fitted:
        assert lines.mean(axis=0) == pytest.approx([1, 0], abs=5 * 0.02 / np.sqrt(2000))
        assert lines.std(axis=0) == pytest.approx([0.02, 0.02], rel=0.1)
    assert abs(np.corrcoef(fitted[0][:, 0], fitted[1][:, 0])[0, 1]) < 0.1, "sources have gains of their own"


def test_jitter_leaves_a_missing_source_as_mapping_shows_it_and_clips_the_rest() -> None:
    given = patches()
    found = Perturbation(FILLED, jitter=1.0).patches(given)
    assert torch.equal(found[0][0], given[0][0])
    assert not torch.equal(found[1][0], given[1][0])
    for x in found:
        assert x.min() == 0
        assert x.max() == 1


def test_jitter_leaves_a_missing_period_as_mapping_shows_it() -> None:
    given = patches()
    given[0][1, :2] = FILLED[0][:2, None, None]
    found = Perturbation(FILLED, jitter=0.5, periods=((0, 0, 1), ())).patches(given)
    assert torch.equal(found[0][1, :2], given[0][1, :2])
    assert not torch.equal(found[0][1, 2], given[0][1, 2])
    assert torch.equal(found[0][0], given[0][0])
    torch.manual_seed(5)
    plain = Perturbation(FILLED, jitter=0.5).patches(given)
    torch.manual_seed(5)
    again = Perturbation(FILLED, jitter=0.5, periods=((0, 0, 1), ())).patches(given)
    assert torch.equal(plain[0][2:], again[0][2:])
    assert torch.equal(plain[1], again[1])


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_band_dropout_fills_whole_bands_and_keeps_one_of_each_source(share: float) -> None:
    given = patches()
    found = Perturbation(FILLED, band_dropout=share).patches(given)
    assert torch.equal(found[1], given[1]), "the only band of a source stays"
    shown = (found[0] == FILLED[0][:, None, None]).flatten(2).all(dim=2)[1:]  # (B, C)
    kept = (found[0] == given[0]).flatten(2).all(dim=2)[1:]
    assert (shown ^ kept).all(), "a band is dropped as a whole or not at all"
    assert kept.any(dim=1).all()
    assert not shown[:, 0].equal(shown[:, 1])
    expected = share - share**3 / 3  # one of three stays where all three would be dropped
    assert shown.float().mean() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_period_dropout_fills_all_bands_of_a_period_and_keeps_one_of_each_source(share: float) -> None:
    torch.manual_seed(1)
    filled = (torch.linspace(0.1, 0.9, 6), torch.tensor([0.4, 0.5]))
    given = [0.2 + 0.6 * torch.rand(2000, 6, 5, 5), 0.2 + 0.6 * torch.rand(2000, 2, 5, 5)]
    periods = ((0, 0, 1, 1, 2, 2), ())
    found = Perturbation(filled, period_dropout=share, periods=periods).patches(given)
    assert torch.equal(found[1], given[1]), "a source without periods stays"
    shown = (found[0] == filled[0][:, None, None]).flatten(2).all(dim=2)  # (B, C)
    kept = (found[0] == given[0]).flatten(2).all(dim=2)
    assert (shown ^ kept).all(), "a band is dropped as a whole or not at all"
    assert torch.equal(shown[:, ::2], shown[:, 1::2]), "bands of a period are dropped together"
    assert kept.any(dim=1).all()
    assert shown[:, ::2].float().mean() == pytest.approx(share - share**3 / 3, abs=0.03)
    one = Perturbation(filled, period_dropout=share, periods=((0,) * 6, (0, 0))).patches(given)
    assert all(torch.equal(x, y) for x, y in zip(one, given, strict=True)), "the only period stays"


def test_mixup_mixes_patches_and_labels_by_the_same_share() -> None:
    given, labels = patches(), torch.arange(2000)
    torch.manual_seed(3)
    found, mixed = Perturbation(FILLED, mixup=1.0).mix(given, labels)
    assert mixed is not None
    assert torch.equal(mixed.first, labels)
    assert sorted(mixed.second.tolist()) == list(range(2000))
    share = mixed.share.numpy()
    for before, after in zip(given, found, strict=True):
        first, second = before.numpy(), before.numpy()[mixed.second.numpy()]
        weight = share[:, None, None, None]
        assert np.abs(weight * first + (1 - weight) * second - after.numpy()).max() < 1e-6
    assert share.min() >= 0.5
    assert share.mean() == pytest.approx(0.75, abs=0.02), "the larger share of a uniform one"
    small = Perturbation(FILLED, mixup=0.05).mix(given, labels)[1]
    assert small is not None
    assert (small.share > 0.99).float().mean() > 0.7, "a small alpha hardly mixes"


def test_perturbation_that_is_off_changes_nothing() -> None:
    given, labels = patches(4), torch.arange(4)
    off = Perturbation(FILLED)
    assert all(a is b for a, b in zip(off.patches(given), given, strict=True))
    assert off.mix(given, labels)[1] is None


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cross-entropy of each row with a distribution over the classes."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return -(target * (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))).sum(axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_loss_of_smoothed_mixed_and_weighted_labels_equals_that_of_their_distributions(
    smoothing: float, weighted: bool, is_mixed: bool
) -> None:
    generator = np.random.default_rng(0)
    logits, first, second = generator.normal(size=(9, 4)), generator.integers(0, 4, 9), generator.integers(0, 4, 9)
    share = generator.uniform(0.5, 1, 9)
    weights = np.array([0.5, 1, 2, 3]) if weighted else np.ones(4)

    def of(labels: np.ndarray) -> np.ndarray:
        target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
        found: np.ndarray = weights[labels] * cross_entropy(logits, target)
        return found

    expected = (share * of(first) + (1 - share) * of(second) if is_mixed else of(first)).mean()
    loss = objective(
        Output(torch.from_numpy(logits), torch.zeros(9, 2), None, torch.ones(9, 1)),
        torch.from_numpy(first),
        beta=0.0,
        weights=torch.from_numpy(weights) if weighted else None,
        label_smoothing=smoothing,
        mixed=MixedLabels(*map(torch.from_numpy, (first, second, share))) if is_mixed else None,
    )
    assert float(loss.total) == pytest.approx(expected)


def test_dropout_drops_pooled_features_in_training_alone_and_adds_no_weights() -> None:
    spec = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW)), classes=2, patch=5)
    spec = replace(spec, without=("noise", "bottleneck"))
    torch.manual_seed(0)
    plain = MIBFNet(spec)
    dropping = MIBFNet(spec, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())  # the same keys
    given = [torch.rand(64, 3, 5, 5), torch.rand(64, 1, 5, 5)]
    seen: list[torch.Tensor] = []
    for network in (plain, dropping):
        network.bottleneck.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        network.train()
        network(given)
    without, dropped = seen
    zeroed = (dropped == 0) & (without != 0)
    assert zeroed.float().sum() / (without != 0).sum() == pytest.approx(0.5, abs=0.05)
    assert torch.allclose(dropped[~zeroed], 2 * without[~zeroed], atol=1e-5)
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(plain.eval()(given).logits, dropping.eval()(given).logits)
