"""The result of `mibf baseline`: figures with intervals as a table, and one sentence of advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: The reported metrics, with their column headings.
HEADINGS = {"overall_accuracy": "OA", "average_accuracy": "AA", "kappa": "kappa", "macro_f1": "macro-F1", "ece": "ECE"}
NETWORK = "MIBF-Net"
#: What to do where a baseline is better than the trained model.
REMEDY = "add labels or training epochs, or leave out sources that do not help; else do not map with this model"


@dataclass(frozen=True)
class Row:
    """A classifier's metrics on the samples of a subset."""

    learner: str
    features: str | None  #: `values` or `neighborhood`; None for the majority class and the network
    weights: str | None  #: `natural` or `balanced`; None likewise
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None  #: lower and upper limits; None with fewer than two blocks
    training_seconds: float | None
    pixels_per_second: float  #: classified, without reading and without computing features

    @property
    def accuracy(self) -> float:
        """Overall accuracy."""
        return self.figures["overall_accuracy"]


@dataclass(frozen=True)
class Difference:
    """Overall accuracy of the best baseline above that of the trained model on the same pixels, with its interval."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class SubsetTable:
    """All classifiers on one subset, the trained model last if there is one."""

    subset: str
    samples: int  #: number of samples classified
    available: int  #: number of samples of the subset
    blocks: int
    block: int  #: side of a block in pixels
    rows: list[Row]
    best: str  #: the best baseline by overall accuracy, in words
    difference: Difference | None  #: None without a trained model

    @property
    def advice(self) -> str:
        """One sentence on whether to use the trained model."""
        majority, best = self.rows[0], max(self._baselines, key=lambda row: row.accuracy)
        if best is majority and (self.difference is None or self.difference.value >= 0):
            return "nothing is better than the majority class here: check labels, classes and coregistration first."
        if self.difference is None:
            return (
                f"{self.best} is the best baseline by overall accuracy ({best.accuracy:.3f}; the majority class has "
                f"{majority.accuracy:.3f}); there is no current trained model to compare with."
            )
        points = _points(self.difference)
        if self.difference.interval is None:
            order = "better" if self.difference.value > 0 else "not better"
            return (
                f"{self.best} is {order} than the trained model here ({points} of overall accuracy), but all samples are in "
                "one block, so the difference may be due to chance."
            )
        low, high = self.difference.interval
        if low > 0:
            return f"{self.best} is better here by {points} of overall accuracy: {REMEDY}."
        if high < 0:
            better = Difference(-self.difference.value, (-high, -low))
            return (
                f"the trained model is better here by {_points(better)} of overall accuracy than {self.best}: map with it."
            )
        return (
            f"the trained model and {self.best} do not differ beyond chance here ({points} of overall accuracy in favor of "
            "the baseline): more validation blocks would decide."
        )

    @property
    def _baselines(self) -> list[Row]:
        return [row for row in self.rows if row.learner != NETWORK]

    def lines(self) -> list[str]:
        """Format as a Markdown table with the advice below."""
        of = "" if self.samples == self.available else f" of {self.available:,}"
        lines = [
            f"{self.subset}: {self.samples:,}{of} samples in {self.blocks} blocks of {self.block} x {self.block} pixels; in "
            "parentheses: 95 % intervals from a bootstrap over blocks",
            "",
            "| classifier | features | classes | " + " | ".join(HEADINGS.values()) + " | training, s | px/s |",
            "|---" * (len(HEADINGS) + 5) + "|",
        ]
        for row in self.rows:
            cells = [_cell(row, name) for name in HEADINGS]
            seconds = "-" if row.training_seconds is None else f"{row.training_seconds:.1f}"
            names = (row.learner, row.features or "-", row.weights or "-", *cells, seconds, f"{row.pixels_per_second:,.0f}")
            lines.append(f"| {' | '.join(names)} |")
        return [*lines, "", f"On {self.subset} pixels, {self.advice}"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return asdict(self) | {"advice": self.advice}


@dataclass(frozen=True)
class Baselines:
    """The tables of all subsets that were read."""

    train: int  #: number of training samples that the baselines were fitted to
    available: int  #: number of training samples
    seed: int
    seconds: float  #: the budget
    left_out: list[str]
    notes: list[str]
    tables: Sequence[SubsetTable]

    def lines(self) -> list[str]:
        """Format as text."""
        of = "" if self.train == self.available else f" of {self.available:,}"
        lines = [f"baselines fitted to {self.train:,}{of} training samples, seed {self.seed}", ""]
        for table in self.tables:
            lines += [*table.lines(), ""]
        if self.left_out:
            lines.append(
                f"left out to keep to {self.seconds:g} s: {', '.join(self.left_out)}; raise --seconds or lower --samples to "
                "include them"
            )
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "train_samples": self.train,
            "train_available": self.available,
            "seed": self.seed,
            "seconds": self.seconds,
            "left_out": self.left_out,
            "notes": self.notes,
            "subsets": [table.to_json() for table in self.tables],
        }


def _points(difference: Difference) -> str:
    """Format a difference of accuracies in percentage points, with half the width of its interval."""
    if difference.interval is None:
        return f"{100 * difference.value:.1f} points"
    low, high = difference.interval
    return f"{100 * difference.value:.1f} ± {50 * (high - low):.1f} points"


def _cell(row: Row, name: str) -> str:
    value = row.figures[name]
    if not np.isfinite(value):
        return "-"
    if row.intervals is None or not np.isfinite(row.intervals[name]).all():
        return f"{value:.3f}"
    low, high = row.intervals[name]
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
