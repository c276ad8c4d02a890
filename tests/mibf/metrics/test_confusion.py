"""Accuracy metrics: a worked example and the properties of merging."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mibf.metrics.confusion import ConfusionMatrix

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60)


def matrix_of(samples: list[tuple[int, int]]) -> ConfusionMatrix:
    return ConfusionMatrix.of([a for a, _ in samples], [b for _, b in samples], classes=4)


def test_metrics_match_cohens_worked_example() -> None:
    """Cohen's two-rater example of 50 cases: 20 + 15 agree, chance agreement 0.5, kappa 0.4."""
    matrix = ConfusionMatrix(np.array([[20, 5], [10, 15]]))
    assert matrix.overall_accuracy == pytest.approx(0.7)
    assert matrix.kappa == pytest.approx(0.4)
    assert matrix.recall == pytest.approx([0.8, 0.6])
    assert matrix.precision == pytest.approx([20 / 30, 15 / 20])
    assert matrix.f1 == pytest.approx([2 * 20 / 55, 2 * 15 / 45])
    assert matrix.average_accuracy == pytest.approx(0.7)
    assert matrix.majority_share == 0.5


def exact_kappa(counts: list[list[int]]) -> float:
    """Cohen's kappa in rational numbers."""
    total = sum(map(sum, counts))
    observed = Fraction(sum(row[i] for i, row in enumerate(counts)), total)
    columns = [sum(column) for column in zip(*counts, strict=True)]
    chance = Fraction(sum(sum(row) * column for row, column in zip(counts, columns, strict=True)), total**2)
    return float((observed - chance) / (1 - chance))


@pytest.mark.parametrize("scale", [1, 10**7, 10**9, 5 * 10**9, 10**15])
def test_kappa_of_any_number_of_samples_equals_rational_arithmetic(scale: int) -> None:
    counts = [[4 * scale, scale, 7], [scale, 3 * scale, 0], [0, 5, 2 * scale]]
    matrix = ConfusionMatrix(np.array(counts))
    assert matrix.kappa == pytest.approx(exact_kappa(counts), rel=1e-12)
    assert matrix.f1[0] == pytest.approx(float(Fraction(8 * scale, 10 * scale + 7)), rel=1e-12)


@given(pairs, pairs)
def test_sum_of_matrices_equals_matrix_of_all_samples(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    assert (matrix_of(one) + matrix_of(other)).counts.tolist() == matrix_of(one + other).counts.tolist()
    assert (matrix_of(one) + ConfusionMatrix.empty(4)).counts.tolist() == matrix_of(one).counts.tolist()


@given(pairs)
def test_metrics_agree_with_samples_and_are_nan_for_absent_classes(samples: list[tuple[int, int]]) -> None:
    matrix = matrix_of(samples)
    assert matrix.samples == len(samples)
    if samples:
        right = sum(a == b for a, b in samples)
        assert matrix.overall_accuracy == pytest.approx(right / len(samples))
        assert matrix.kappa <= 1 + 1e-12 or np.isnan(matrix.kappa)
    absent = matrix.support == 0
    assert np.isnan(matrix.recall[absent]).all()
    assert np.isnan(matrix.f1[absent]).all()
    assert matrix.figures()["classes_measured"] == 4 - absent.sum()


def test_majority_prediction_has_majority_share_accuracy_and_zero_kappa() -> None:
    matrix = ConfusionMatrix.of([0] * 7 + [1] * 3, [0] * 10, classes=2)
    assert matrix.overall_accuracy == matrix.majority_share == 0.7
    assert matrix.kappa == pytest.approx(0)


def test_metrics_without_samples_are_nan() -> None:
    figures = ConfusionMatrix.empty(3).figures()
    assert figures["samples"] == 0
    assert np.isnan(figures["overall_accuracy"])
    assert np.isnan(figures["kappa"])
