"""Metrics by block and their bootstrap: against scikit-learn, `Reliability` and a bootstrap by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from mibf.metrics.block_bootstrap import MEASURED, REPLICATES, BlockCounts, draw_blocks, interval
from mibf.metrics.calibration import Reliability

CLASSES, BLOCKS = 4, 6


@pytest.fixture(scope="module")
def predictions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels without the last class, and blocks; accuracy differs by block."""
    generator = np.random.default_rng(2)
    labels, blocks = generator.integers(0, CLASSES - 1, 600), generator.integers(0, BLOCKS, 600)
    logits = generator.normal(0, 1, (600, CLASSES)) + (blocks[:, None] / 2) * np.eye(CLASSES)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, labels, blocks


def test_figures_equal_those_of_scikit_learn(predictions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    probabilities, labels, blocks = predictions
    figures = BlockCounts.of(probabilities, labels, blocks, number=BLOCKS).figures()
    named, present = probabilities.argmax(axis=1), np.unique(labels)
    assert figures["overall_accuracy"] == pytest.approx(metrics.accuracy_score(labels, named))
    assert figures["average_accuracy"] == pytest.approx(metrics.recall_score(labels, named, labels=present, average="macro"))
    assert figures["kappa"] == pytest.approx(metrics.cohen_kappa_score(labels, named))
    assert figures["macro_f1"] == pytest.approx(metrics.f1_score(labels, named, labels=present, average="macro"))
    reliability = Reliability(CLASSES, torch.device("cpu"))
    reliability.add(torch.from_numpy(probabilities).log(), torch.from_numpy(labels))
    assert figures["ece"] == pytest.approx(reliability.figures()["ece"], abs=1e-6)
    assert set(figures) == set(MEASURED)


def test_replicates_equal_those_of_repeated_samples(predictions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    probabilities, labels, blocks = predictions
    drawn = draw_blocks(BLOCKS, seed=1)[:3]
    found = BlockCounts.of(probabilities, labels, blocks, number=BLOCKS).replicates(drawn)
    for row, times in enumerate(drawn):
        taken = np.concatenate([np.flatnonzero(blocks == block) for block, n in enumerate(times) for _ in range(n)])
        again = BlockCounts.of(probabilities[taken], labels[taken], np.zeros(len(taken), int), number=1).figures()
        assert {name: found[name][row] for name in MEASURED} == pytest.approx(again)


def test_draws_replace_blocks_and_depend_on_the_seed_alone() -> None:
    drawn = draw_blocks(BLOCKS, seed=4)
    assert drawn.shape == (REPLICATES, BLOCKS)
    assert (drawn.sum(axis=1) == BLOCKS).all()
    assert (drawn == draw_blocks(BLOCKS, seed=4)).all()
    assert (drawn != draw_blocks(BLOCKS, seed=5)).any()


def test_interval_covers_95_percent_and_ignores_undefined_replicates() -> None:
    values = np.append(np.arange(101.0), [np.nan, np.nan])
    assert interval(values) == pytest.approx((2.5, 97.5))
    assert np.isnan(interval(np.array([np.nan]))).all()


def test_interval_of_alike_blocks_is_that_of_the_binomial() -> None:
    """300 blocks of one sample each are independent samples: sqrt(p (1 - p) / n)."""
    right = np.arange(300) % 5 > 0
    probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    counts = BlockCounts.of(probabilities, np.zeros(300, int), np.arange(300), number=300)
    low, high = interval(counts.replicates(draw_blocks(300, seed=0))["overall_accuracy"])
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 300), rel=0.1)
