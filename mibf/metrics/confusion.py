"""Accuracy metrics from a confusion matrix that can be merged over batches, workers and scenes. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of samples: rows are the reference (true) class, columns the predicted one."""

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, classes: int) -> ConfusionMatrix:
        """Return the matrix of no samples, the identity of `+`."""
        return cls(np.zeros((classes, classes), dtype=np.int64))

    @classmethod
    def of(cls, reference: ArrayLike, predicted: ArrayLike, *, classes: int) -> ConfusionMatrix:
        """Count pairs of class positions (from 0), given as two arrays of equal length."""
        reference, predicted = np.asarray(reference, np.int64), np.asarray(predicted, np.int64)
        flat = np.bincount(reference * classes + predicted, minlength=classes * classes)
        return cls(flat.reshape(classes, classes))

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        return ConfusionMatrix(self.counts + other.counts)

    @property
    def samples(self) -> int:
        """Number of samples counted."""
        return int(self.counts.sum())

    @property
    def support(self) -> NDArray[np.int64]:
        """Number of samples of each reference class."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def overall_accuracy(self) -> float:
        """OA: the fraction of samples classified correctly; NaN if there are no samples."""
        return _ratio(float(np.trace(self.counts)), self.samples)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Producer's accuracy of each class; NaN for a class without samples."""
        return _ratios(np.diag(self.counts), self.support)

    @property
    def precision(self) -> NDArray[np.float64]:
        """User's accuracy of each class; NaN for a class never predicted."""
        return _ratios(np.diag(self.counts), self.counts.sum(axis=0))

    @property
    def f1(self) -> NDArray[np.float64]:
        """2 TP / (2 TP + FP + FN) of each class; NaN for a class without samples."""
        agreed = 2.0 * np.diag(self.counts)
        return np.where(self.support > 0, _ratios(agreed, self.support + self.counts.sum(axis=0)), np.nan)

    @property
    def average_accuracy(self) -> float:
        """AA: the mean recall over the classes that have samples."""
        present = self.support > 0
        return float(self.recall[present].mean()) if present.any() else float("nan")

    @property
    def kappa(self) -> float:
        """Cohen's kappa (Cohen 1960), for comparison with papers; NaN where chance agreement is certain."""
        # Products of counts exceed 64 bits from about 3e9 samples of a class: Python's integers do not overflow.
        pairs = zip(self.support.tolist(), self.counts.sum(axis=0).tolist(), strict=True)
        chance = _ratio(float(sum(reference * predicted for reference, predicted in pairs)), float(self.samples) ** 2)
        return _ratio(self.overall_accuracy - chance, 1.0 - chance)

    @property
    def majority_share(self) -> float:
        """The OA of predicting the most frequent reference class everywhere: the baseline that any model has to beat."""
        return _ratio(float(self.support.max(initial=0)), self.samples)

    def figures(self) -> dict[str, Any]:
        """Return OA, AA, kappa, macro-F1, majority class share and the numbers of samples and classes, as JSON values."""
        present = self.support > 0
        return {
            "samples": self.samples,
            "overall_accuracy": self.overall_accuracy,
            "average_accuracy": self.average_accuracy,
            "kappa": self.kappa,
            "macro_f1": float(self.f1[present].mean()) if present.any() else float("nan"),
            "majority_share": self.majority_share,
            "classes_measured": int(present.sum()),  # AA and macro-F1 are means over these
        }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def _ratios(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    result = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
