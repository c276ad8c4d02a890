"""Mixtures: values, limits and fits against direct computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mibf.ensemble import (
    HIGHEST,
    LEAST_SHARE,
    LOWEST,
    Blend,
    cross_fitted,
    fit_shares,
    fit_temperature,
    mixture_log_probabilities,
)


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def log_loss(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


def drawn(
    seed: int, *, samples: int = 400, classes: int = 3, sharpness: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits that are too sharp by a factor, and labels drawn from the probabilities of the right ones."""
    generator = np.random.default_rng(seed)
    right = generator.normal(size=(samples, classes)) * 2
    labels = np.array([generator.choice(classes, p=p) for p in softmax(right)])
    return right * sharpness, labels


def test_mixture_equals_the_formula() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(5, 4)), generator.normal(size=(5, 4)) * 3
    correction = generator.normal(size=4)
    expected = 0.3 * softmax((a + correction) / 2.0) + 0.7 * softmax((b + correction) / 0.5)
    found = mixture_log_probabilities(
        [torch.from_numpy(a).float(), torch.from_numpy(b)], (2.0, 0.5), (0.3, 0.7), torch.from_numpy(correction)
    )
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-5)


def test_one_member_is_its_own_log_softmax_to_the_last_bit() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    found = mixture_log_probabilities([logits, logits], (1.7, 1.0), (1.0, 0.0))
    assert torch.equal(found, (logits / 1.7).log_softmax(dim=1))


def test_mixture_is_finite_for_extreme_logits_and_a_member_without_probability() -> None:
    extreme = torch.tensor([[1e4, -1e4, 0.0]])
    found = mixture_log_probabilities([extreme, -extreme], (0.25, 0.25), (0.5, 0.5))
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found.exp().numpy(), [[0.5, 0.5, 0.0]], atol=1e-6)


def test_mixture_without_shares_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mixture_log_probabilities([torch.zeros(1, 2)], (1.0,), (0.0,))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_has_the_least_log_loss(sharpness: float) -> None:
    logits, labels = drawn(1, sharpness=sharpness)
    found = fit_temperature(logits, labels)
    grid = np.geomspace(LOWEST, HIGHEST, 400)
    best = grid[np.argmin([log_loss(softmax(logits / t), labels) for t in grid])]
    assert found == pytest.approx(best, rel=0.02)
    assert found == pytest.approx(sharpness, rel=0.25)


def test_temperature_limits() -> None:
    perfect = np.eye(3)[np.arange(30) % 3] * 5
    assert fit_temperature(perfect, np.arange(30) % 3) == pytest.approx(LOWEST)
    assert fit_temperature(perfect, (np.arange(30) + 1) % 3) == pytest.approx(HIGHEST)
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64)) == 1.0


def test_weights_count_like_repeated_samples() -> None:
    logits, labels = drawn(2, samples=60, sharpness=2.0)
    times = np.random.default_rng(0).integers(1, 4, size=60)
    weights = times.astype(np.float64)
    repeated = np.repeat(np.arange(60), times)
    assert fit_temperature(logits, labels, weights) == pytest.approx(fit_temperature(logits[repeated], labels[repeated]))
    members = [np.log(softmax(logits)), np.log(softmax(-logits / 4)), np.log(softmax(logits / 9))]
    expected = fit_shares([m[repeated] for m in members], labels[repeated])
    assert fit_shares(members, labels, weights) == pytest.approx(expected, abs=1e-4)


def test_shares_have_the_least_log_loss() -> None:
    logits, labels = drawn(3, samples=600)
    generator = np.random.default_rng(4)
    members = [softmax(logits + generator.normal(size=logits.shape) * 1.5) for _ in range(2)]
    share, other = fit_shares([np.log(m) for m in members], labels)
    grid = np.linspace(0, 1, 501)
    best = grid[np.argmin([log_loss(g * members[0] + (1 - g) * members[1], labels) for g in grid])]
    assert share == pytest.approx(best, abs=0.005)
    assert share + other == pytest.approx(1)


def test_useless_members_are_dropped() -> None:
    logits, labels = drawn(5)
    members = [np.log(softmax(logits)), np.log(softmax(-logits)), np.full_like(logits, -np.log(3))]
    shares = fit_shares(members, labels)
    assert shares[1] == 0
    assert all(share == 0 or share >= LEAST_SHARE for share in shares)
    assert sum(shares) == pytest.approx(1)


def test_impossible_labels_do_not_make_shares_undefined() -> None:
    """A member may give a label no probability at all, and after it is dropped none of the others may."""
    labels = np.array([0, 0, 0, 1])
    sure = np.log(np.array([[1.0, 1e-320]] * 4))
    with np.errstate(divide="ignore"):
        members = [np.log(np.array([[1.0, 0.0]] * 4)), sure]
    for labeled in (labels, np.ones(4, np.int64)):
        for given_members in (members, members[:1] * 2):
            shares = fit_shares(given_members, labeled)
            assert np.isfinite(shares).all()
            assert sum(shares) == pytest.approx(1)


@given(st.integers(0, 1000), st.integers(1, 4))
def test_blend_is_never_worse_than_its_best_member_where_it_is_fitted(seed: int, members: int) -> None:
    logits, labels = drawn(seed, samples=50)
    generator = np.random.default_rng(seed)
    each = [logits + generator.normal(size=logits.shape) * k for k in range(members)]
    blend = Blend.fitted(each, labels)
    best = min(log_loss(softmax(own / t), labels) for own, t in zip(each, blend.temperatures, strict=True))
    # Dropping members of small shares may cost a little.
    assert log_loss(np.exp(blend.log_probabilities(each)), labels) <= best + 0.01


def test_cross_fit_applies_to_each_group_what_the_others_gave() -> None:
    logits, labels = drawn(6, samples=90, sharpness=2.0)
    groups = np.arange(90) % 3
    found, blend = cross_fitted([logits, -logits / 5], labels, groups)
    for group in range(3):
        own = groups == group
        others = Blend.fitted([logits[~own], -logits[~own] / 5], labels[~own])
        np.testing.assert_array_equal(found[own], others.log_probabilities([logits[own], -logits[own] / 5]))
    assert blend == Blend.fitted([logits, -logits / 5], labels)


def test_cross_fit_never_uses_the_labels_of_a_group_for_itself() -> None:
    logits, labels = drawn(7, samples=60)
    groups = np.arange(60) % 2
    changed = np.where(groups == 0, (labels + 1) % 3, labels)
    before, _ = cross_fitted([logits], labels, groups)
    after, _ = cross_fitted([logits], changed, groups)
    np.testing.assert_array_equal(before[groups == 0], after[groups == 0])
    assert not np.array_equal(before[groups == 1], after[groups == 1])


def test_cross_fit_of_one_group_is_the_fit() -> None:
    logits, labels = drawn(8, samples=30)
    found, blend = cross_fitted([logits], labels, np.zeros(30, np.int64))
    np.testing.assert_array_equal(found, blend.log_probabilities([logits]))
