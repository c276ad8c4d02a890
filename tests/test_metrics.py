"""Accuracy figures: a worked example, and the laws of merging."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mibf.metrics import ConfusionMatrix

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60)


def of(samples: list[tuple[int, int]]) -> ConfusionMatrix:
    return ConfusionMatrix.of([a for a, _ in samples], [b for _, b in samples], classes=4)


def test_a_worked_example() -> None:
    """Cohen's two-rater example of 50 cases: 20 + 15 agree, chance agreement 0.5, kappa 0.4."""
    matrix = ConfusionMatrix(np.array([[20, 5], [10, 15]]))
    assert matrix.overall_accuracy == pytest.approx(0.7)
    assert matrix.kappa == pytest.approx(0.4)
    assert matrix.recall == pytest.approx([0.8, 0.6])
    assert matrix.precision == pytest.approx([20 / 30, 15 / 20])
    assert matrix.f1 == pytest.approx([2 * 20 / 55, 2 * 15 / 45])
    assert matrix.average_accuracy == pytest.approx(0.7)
    assert matrix.majority_share == 0.5


@given(pairs, pairs)
def test_merging_equals_counting_together(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    assert (of(one) + of(other)).counts.tolist() == of(one + other).counts.tolist()
    assert (of(one) + ConfusionMatrix.empty(4)).counts.tolist() == of(one).counts.tolist()


@given(pairs)
def test_figures_hold_together(samples: list[tuple[int, int]]) -> None:
    matrix = of(samples)
    assert matrix.samples == len(samples)
    if samples:
        right = sum(a == b for a, b in samples)
        assert matrix.overall_accuracy == pytest.approx(right / len(samples))
        assert matrix.kappa <= 1 + 1e-12 or np.isnan(matrix.kappa)
    absent = matrix.support == 0
    assert np.isnan(matrix.recall[absent]).all()
    assert np.isnan(matrix.f1[absent]).all()
    assert matrix.figures()["classes_measured"] == 4 - absent.sum()


def test_naming_the_majority_everywhere_gives_its_share_and_no_kappa() -> None:
    matrix = ConfusionMatrix.of([0] * 7 + [1] * 3, [0] * 10, classes=2)
    assert matrix.overall_accuracy == matrix.majority_share == 0.7
    assert matrix.kappa == pytest.approx(0)


def test_no_samples_give_no_figures() -> None:
    figures = ConfusionMatrix.empty(3).figures()
    assert figures["samples"] == 0
    assert np.isnan(figures["overall_accuracy"])
    assert np.isnan(figures["kappa"])


@pytest.mark.parametrize(("method", "overlap"), [("blocks", 0.0), ("random", 0.97), ("random", None)])
def test_figures_of_a_random_split_have_their_caveat(method: str, overlap: float | None) -> None:
    from types import SimpleNamespace
    from typing import Any, cast

    from jobs.evaluate import _caveat

    told = _caveat(cast(Any, SimpleNamespace(provenance={})), {"method": method, "overlap": {"scene": overlap}})
    if method == "blocks":
        assert told is None
    else:
        assert told is not None
        assert f"up to {overlap or 0:.0%} of a scene's test patches overlap a training patch" in told
