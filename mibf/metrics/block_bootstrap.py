"""Intervals of accuracy and calibration metrics from a bootstrap over spatial blocks.

Neighboring pixels are alike, so the number of pixels says little about how certain a metric is. The bootstrap draws entire
blocks with replacement (Efron & Tibshirani 1993; blocks of correlated data: Kuensch 1989), which assumes that the blocks are
independent of each other; with few of them the intervals are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mibf.metrics.calibration import BINS, expected_calibration_error
from mibf.metrics.confusion import ConfusionMatrix

#: Number of replicates, and the probability that an interval is meant to cover.
REPLICATES, COVERAGE = 1000, 0.95
#: The metrics that are computed.
MEASURED = ("overall_accuracy", "average_accuracy", "kappa", "macro_f1", "ece")


@dataclass(frozen=True)
class BlockCounts:
    """What the metrics of some predictions need, summed over the samples of each of B blocks."""

    confusion: NDArray[np.int64]  #: (B, classes, classes), rows are the reference class
    bins: NDArray[np.float64]  #: (B, 3, bins): number of samples, sum of their confidences, number of correct ones

    @classmethod
    def of(
        cls, probabilities: NDArray[np.floating], labels: NDArray[np.int64], blocks: NDArray[np.int64], *, number: int
    ) -> BlockCounts:
        """Count predictions.

        Args:
            probabilities: (n, classes).
            labels: class positions (n,).
            blocks: block of each sample, from 0 (n,).
            number: number of blocks.
        """
        classes = probabilities.shape[1]
        named, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float64)
        flat = (blocks * classes + labels) * classes + named
        counts = np.bincount(flat, minlength=number * classes**2).reshape(number, classes, classes)
        # A bin includes its upper edge, as in `mibf.metrics.calibration`.
        bins = blocks * BINS + np.clip(np.ceil(confidence * BINS).astype(np.int64), 1, BINS) - 1
        weights = (np.ones_like(confidence), confidence, (named == labels).astype(np.float64))
        sums = [np.bincount(bins, weight, number * BINS).reshape(number, BINS) for weight in weights]
        return cls(counts, np.stack(sums, axis=1))

    def figures(self) -> dict[str, float]:
        """Return the metrics named in `MEASURED` over the samples of all blocks; NaN where one is not defined."""
        return _figures(self.confusion.sum(axis=0), self.bins.sum(axis=0))

    def replicates(self, drawn: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return the metrics of every replicate (R,), given how often each draws each block (R, B)."""
        times = drawn.astype(np.float64)  # integers have no fast matrix product, and floats of this size are exact
        confusion, bins = np.tensordot(times, self.confusion, axes=1), np.tensordot(times, self.bins, axes=1)
        rows = [_figures(counts, sums) for counts, sums in zip(confusion.astype(np.int64), bins, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in MEASURED}

    def class_f1(self, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the F1 of each class in every replicate (R, classes); NaN where a replicate has no sample of the class."""
        confusion = np.tensordot(drawn.astype(np.float64), self.confusion, axes=1)
        agreed, support = 2 * np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(support > 0, agreed / (support + confusion.sum(axis=1)), np.nan)


def _figures(confusion: NDArray[np.int64], bins: NDArray[np.float64]) -> dict[str, float]:
    found = ConfusionMatrix(confusion).figures() | {"ece": expected_calibration_error(bins)}
    return {name: float(found[name]) for name in MEASURED}


def draw_blocks(number: int, *, seed: int) -> NDArray[np.int64]:
    """Draw the blocks of all replicates: how often each block occurs (R, B). Predictions that share it can be compared."""
    return np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=REPLICATES)


def interval(replicates: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile interval of a metric, or of the difference of two; NaN if no replicate defines it."""
    known = replicates[np.isfinite(replicates)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
