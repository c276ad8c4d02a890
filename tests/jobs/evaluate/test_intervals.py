"""Intervals of metrics on held-out samples, from counts by block."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.evaluate.intervals import block_intervals, interval_line
from mibf.metrics.block_bootstrap import REPLICATES, BlockCounts, draw_blocks, interval
from mibf.metrics.calibration import BINS
from pipeline.sampling.sample_blocks import Block, BlockSums


def some_blocks(number: int) -> dict[Block, BlockSums]:
    generator = np.random.default_rng(0)
    found: dict[Block, BlockSums] = {}
    for position in range(number):
        confusion = np.diag([30, 20, 0]) + generator.integers(0, 10, (3, 3)) * np.array([[1], [1], [0]])
        bins = np.zeros((3, BINS))
        bins[:, -1] = confusion.sum(), 0.97 * confusion.sum(), np.trace(confusion)
        found["store", 0, position] = confusion, bins
    return found


def test_intervals_contain_the_metrics_of_all_samples() -> None:
    blocks = some_blocks(30)
    found = block_intervals(blocks, side=96)
    assert found is not None
    assert (found["blocks"], found["block"], found["replicates"]) == (30, 96, REPLICATES)
    counts = BlockCounts(*(np.stack(each) for each in zip(*blocks.values(), strict=True)))
    for name, value in counts.figures().items():
        low, high = found["metrics"][name]
        assert low <= value <= high
        assert high - low < 0.1
    confusion = counts.confusion.sum(axis=0)
    f1 = 2 * np.diag(confusion)[:2] / (confusion.sum(axis=0) + confusion.sum(axis=1))[:2]
    for value, (low, high) in zip(f1, found["class_f1"], strict=False):
        assert low < value < high
    assert np.isnan(found["class_f1"][2]).all()  # the class has no samples
    assert "too narrow" not in interval_line(found)


def test_class_f1_of_replicates_is_that_of_the_drawn_blocks() -> None:
    counts = BlockCounts(*(np.stack(each) for each in zip(*some_blocks(5).values(), strict=True)))
    drawn = draw_blocks(5, seed=0)[:4]
    for times, row in zip(drawn, counts.class_f1(drawn), strict=True):
        confusion = np.einsum("b,bij->ij", times, counts.confusion)
        expected = 2 * np.diag(confusion)[:2] / (confusion.sum(axis=0) + confusion.sum(axis=1))[:2]
        assert row[:2] == pytest.approx(expected)
        assert np.isnan(row[2])
    low, high = interval(counts.class_f1(draw_blocks(5, seed=0))[:, 0])
    assert low < high


def test_a_class_in_few_blocks_has_no_interval() -> None:
    blocks = some_blocks(30)
    for position, (confusion, _) in enumerate(blocks.values()):
        confusion[2, 2] = 7 if position < 5 else 0
    found = block_intervals(blocks, side=96)
    assert found is not None
    low, high = found["class_f1"][2]
    assert 0 < low < high < 1
    next(iter(blocks.values()))[0][2] = 0
    found = block_intervals(blocks, side=96)
    assert found is not None
    assert np.isnan(found["class_f1"][2]).all()
    assert np.isfinite(found["class_f1"][:2]).all()


def test_few_blocks_are_reported() -> None:
    assert block_intervals(some_blocks(1), side=64) is None
    assert "single block" in interval_line(None)
    few = block_intervals(some_blocks(3), side=64)
    assert "over 3 blocks of 64 x 64 pixels; too narrow" in interval_line(few)
