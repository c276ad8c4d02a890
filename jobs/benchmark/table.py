"""The result of `mibf benchmark`: every model on every split, with mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jobs.baseline.table import HEADINGS, MODEL_ROWS
from jobs.benchmark.dataset import SplitName

#: What the figures of each split say.
MEANING: dict[SplitName, str] = {
    "official": "the published training and test pixels, for comparison with papers that used them",
    "random": "random pixels of each class for training: patches of test and training pixels overlap, so it leaks and "
    "compares implementations only",
    "blocks": "spatial blocks with a buffer, no patch in two subsets: ground that was not seen, as in mapping",
}


@dataclass(frozen=True)
class CellResult:
    """The figures of one split and seed, on test pixels."""

    split: SplitName
    seed: int
    evaluation: str  #: identity of the evaluation that they belong to
    samples: dict[str, int]  #: of each subset
    overlap: float | None  #: share of test patches that overlap a training patch
    models: dict[str, dict[str, float | None]]  #: metrics of each model
    classified: int  #: test pixels that the baselines classified
    left_out: list[str]  #: baselines for which there was no time

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Benchmark:
    """All results of a data set."""

    name: str
    title: str
    origin: str
    sums: dict[str, str]  #: SHA-256 of the files
    notes: list[str]
    cells: Sequence[CellResult]
    refused: dict[str, str]  #: cells whose split is impossible, with the reason
    workspace: str

    def splits(self) -> list[SplitName]:
        """The splits with results, in order."""
        return [split for split in MEANING if any(cell.split == split for cell in self.cells)]

    def models(self, split: SplitName) -> dict[str, dict[str, list[float]]]:
        """The values of each metric over seeds, of each model."""
        cells = [cell for cell in self.cells if cell.split == split]
        names = dict.fromkeys(name for cell in cells for name in cell.models)
        return {
            name: {
                metric: [_number(cell.models[name][metric]) for cell in cells if name in cell.models] for metric in HEADINGS
            }
            for name in names
        }

    def lines(self) -> list[str]:
        """Format as Markdown."""
        lines = [f"# {self.title}", ""]
        for split in self.splits():
            lines += [*self._described(split), ""]
        lines += [f"| split | model | {' | '.join(HEADINGS.values())} |", "|---" * (len(HEADINGS) + 2) + "|"]
        for split in self.splits():
            for name, values in self.models(split).items():
                lines.append(f"| {split} | {name} | {' | '.join(_cell(values[metric]) for metric in HEADINGS)} |")
        seeds = max((sum(cell.split == split for cell in self.cells) for split in self.splits()), default=0)
        lines += ["", "Test pixels; mean ± standard deviation over seeds." if seeds > 1 else "Test pixels; one seed."]
        lines += self._gap()
        left_out = sorted({name for cell in self.cells for name in cell.left_out})
        if left_out:
            lines.append(f"note: left out in some runs for lack of time: {', '.join(left_out)}")
        lines += [f"note: {cell}: not run: {reason}" for cell, reason in self.refused.items()]
        lines += [f"note: {note}" for note in self.notes]
        return [*lines, f"made: {self.workspace}/benchmark.json and benchmark.md"]

    def _described(self, split: SplitName) -> list[str]:
        cells = [cell for cell in self.cells if cell.split == split]
        samples = ", ".join(f"{_mean(cells, subset):,.0f} {subset}" for subset in ("train", "validation", "test"))
        overlaps = [share for share in (_number(cell.overlap) for cell in cells) if np.isfinite(share)]
        overlap = f"; {np.mean(overlaps):.1%} of test patches overlap a training patch" if overlaps else ""
        fewer = min(cell.classified for cell in cells)
        of = f"; baselines on {fewer:,} drawn test pixels" if fewer < min(cell.samples["test"] for cell in cells) else ""
        return [f"- **{split}**: {MEANING[split]}. Pixels: {samples}{overlap}{of}."]

    def _gap(self) -> list[str]:
        """The difference that the split alone makes."""
        lines = []
        for name in MODEL_ROWS.values():
            accuracy = {
                split: float(np.mean(self.models(split)[name]["overall_accuracy"]))
                for split in self.splits()
                if name in self.models(split)
            }
            if {"random", "blocks"} <= accuracy.keys():
                gap = 100 * (accuracy["random"] - accuracy["blocks"])
                lines.append(f"{name}: the random split is {gap:+.1f} points of overall accuracy from the block split.")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "name": self.name,
            "title": self.title,
            "origin": self.origin,
            "sha256": self.sums,
            "notes": self.notes,
            "splits": {
                split: {
                    "meaning": MEANING[split],
                    "models": {
                        name: {metric: _summary(values[metric]) for metric in HEADINGS}
                        for name, values in self.models(split).items()
                    },
                }
                for split in self.splits()
            },
            "cells": [cell.to_json() for cell in self.cells],
            "refused": self.refused,
        }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _mean(cells: Sequence[CellResult], subset: str) -> float:
    return float(np.mean([cell.samples[subset] for cell in cells]))


def _summary(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (n - 1; None for one value), and the values."""
    return {
        "mean": float(np.mean(values)),
        "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "values": values,
    }


def _cell(values: list[float]) -> str:
    if not np.isfinite(values).all():
        return "-"
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"
