"""The result of `mibf baseline`: figures with intervals as a table, and one sentence of advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.baseline.advice import Best, Difference, ModelName, advice
from jobs.workflow.seed_summary import format_with_interval

#: The reported metrics, with their column headings.
HEADINGS = {"overall_accuracy": "OA", "average_accuracy": "AA", "kappa": "kappa", "macro_f1": "macro-F1", "ece": "ECE"}
#: The trained model's name in the tables.
MODEL_ROWS: dict[ModelName, str] = {"the network": "MIBF-Net", "the model": "trained model"}


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
    model: ModelName = "the network"
    by_trials: bool = False  #: whether the recipe `auto` chose the trained model
    one_source: bool = False  #: whether the trained model has a single source

    @property
    def advice(self) -> str:
        """One sentence on whether to use the trained model."""
        best = max(self.baselines, key=lambda row: row.accuracy)
        return advice(
            self.subset,
            Best(best.learner, self.best, best.accuracy),
            majority=self.rows[0].accuracy,
            difference=self.difference,
            model=self.model,
            by_trials=self.by_trials,
            one_source=self.one_source,
        )

    @property
    def baselines(self) -> list[Row]:
        """All classifiers but the trained model."""
        return self.rows if self.difference is None else self.rows[:-1]

    def summary(self) -> list[str]:
        """Format the best variant of each learner, and the trained model, as lines for a terminal."""
        best: dict[str, Row] = {}
        for row in self.baselines:
            if row.learner not in best or row.accuracy > best[row.learner].accuracy:
                best[row.learner] = row
        rows = [*best.values(), *self.rows[len(self.baselines) :]]
        names = [", ".join(filter(None, (row.learner, row.features, row.weights))) for row in rows]
        cells = [[format_metric(row, metric) for metric in HEADINGS] for row in rows]
        shown = [["", *HEADINGS.values()], *([name, *row] for name, row in zip(names, cells, strict=True))]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in shown]
        return [f"{self._heading}; 95 % intervals:", *(f"  {line}".rstrip() for line in lines)]

    def lines(self) -> list[str]:
        """Format as a Markdown table with the advice below."""
        lines = [
            f"{self._heading}; in parentheses: 95 % intervals from a bootstrap over blocks",
            "",
            "| classifier | features | classes | " + " | ".join(HEADINGS.values()) + " | training, s | px/s |",
            "|---" * (len(HEADINGS) + 5) + "|",
        ]
        for row in self.rows:
            cells = [format_metric(row, name) for name in HEADINGS]
            seconds = "-" if row.training_seconds is None else f"{row.training_seconds:.1f}"
            names = (row.learner, row.features or "-", row.weights or "-", *cells, seconds, f"{row.pixels_per_second:,.0f}")
            lines.append(f"| {' | '.join(names)} |")
        return [*lines, "", self.advice]

    @property
    def _heading(self) -> str:
        of = "" if self.samples == self.available else f" of {self.available:,}"
        blocks = "1 block" if self.blocks == 1 else f"{self.blocks:,} blocks"
        return f"{self.subset}: {self.samples:,}{of} samples in {blocks} of {self.block} x {self.block} pixels"

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
    cut_short: list[str] = field(default_factory=list)  #: learners that were not fitted to the end

    @classmethod
    def none(cls, note: str, *, seconds: float) -> Baselines:
        """Create without tables, with a note that says why."""
        return cls(train=0, available=0, seed=0, seconds=seconds, left_out=[], notes=[note], tables=[])

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
        if self.cut_short:
            lines.append(
                f"cut short to keep to {self.seconds:g} s, so that their figures may be too low and vary from run to run: "
                f"{', '.join(self.cut_short)}; raise --seconds or lower --samples"
            )
        return [*lines, *(f"note: {note}" for note in self.notes)]

    @property
    def advice(self) -> str | None:
        """What validation pixels advise; None without any. Test pixels decide nothing."""
        return next((table.advice for table in self.tables if table.subset == "validation"), None)

    def summary(self) -> list[str]:
        """Format the advice and the most important figures as lines for a terminal."""
        lines = [] if self.advice is None else [self.advice]
        for table in self.tables:
            lines += table.summary()
        if self.left_out:
            left_out = len(self.left_out)
            lines.append(f"{left_out} fits left out to keep to {self.seconds:.0f} s; set `baselines.seconds` to allow more")
        if self.cut_short:
            lines.append(
                f"fits cut short to keep to {self.seconds:.0f} s, so that their figures may be too low: "
                f"{', '.join(self.cut_short)}"
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
            "cut_short": self.cut_short,
            "notes": self.notes,
            "advice": self.advice,
            "subsets": [table.to_json() for table in self.tables],
        }


def format_metric(row: Row, name: str) -> str:
    """Format a metric with its interval, as far as they are defined."""
    return format_with_interval(row.figures[name], None if row.intervals is None else row.intervals[name])
