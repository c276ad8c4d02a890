"""The result of trials: candidates with their metrics as a table, and what was chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jobs.workflow.seed_summary import format_with_interval
from mibf.serialization import without_nan

#: The reported metrics, with their column headings.
HEADINGS = {
    "overall_accuracy": "OA",
    "macro_f1": "macro-F1",
    "kappa": "kappa",
    "log_loss": "log loss",
    "ece": "ECE",
}


@dataclass(frozen=True)
class Member:
    """A model to train on all training samples, and what its logits count in the mixture."""

    name: str  #: of the candidate
    kind: str  #: network, trees or linear
    steps: int
    temperature: float
    share: float
    penalty: float | None = None  #: of logistic regression


@dataclass(frozen=True)
class TrialRow:
    """The out-of-fold metrics of a candidate, or of a blend with one entry per member in the tuples."""

    name: str
    kinds: tuple[str, ...]
    steps: tuple[int, ...]
    shares: tuple[float, ...]
    temperatures: tuple[float, ...]
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None  #: lower and upper limits; None with fewer than two blocks
    seconds: float
    chosen: bool
    why: str  #: why it was chosen or not
    penalty: float | None = None  #: of logistic regression alone

    def cells(self) -> list[str]:
        """Return the cells of its line in the table."""
        steps = " + ".join(map(str, self.steps))
        return [self.name, steps, *map(self._cell, HEADINGS), f"{self.seconds:.1f}", self.why]

    def _cell(self, metric: str) -> str:
        return format_with_interval(self.figures[metric], None if self.intervals is None else self.intervals[metric])


@dataclass(frozen=True)
class Choice:
    """All candidates and blends, and the members of the chosen one."""

    rows: tuple[TrialRow, ...]
    members: tuple[Member, ...]
    sentence: str
    samples: int  #: number of samples that were compared
    blocks: int
    side: int  #: of a block in pixels
    folds: int
    notes: tuple[str, ...]

    @property
    def best(self) -> TrialRow:
        """The row that was chosen."""
        return next(row for row in self.rows if row.chosen)

    def lines(self) -> list[str]:
        """Format as a Markdown table with the choice below."""
        how = "the given split" if self.folds == 1 else f"{self.folds} folds"
        headings = ["candidate", "steps", *HEADINGS.values(), "s", "why"]
        return [
            f"trials: {self.samples:,} held-out samples in {self.blocks} blocks of {self.side} x {self.side} pixels, {how}; "
            "in parentheses: 95 % intervals from a bootstrap over blocks",
            "",
            f"| {' | '.join(headings)} |",
            "|---" * len(headings) + "|",
            *(f"| {' | '.join(row.cells())} |" for row in self.rows),
            "",
            self.sentence,
            *(f"note: {note}" for note in self.notes),
        ]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values; metrics that are not defined are null."""
        return dict(without_nan(asdict(self)))
