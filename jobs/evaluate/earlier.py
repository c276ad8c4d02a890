"""What evaluations of other models found on the same test pixels: of the run's earlier model, and of other runs.

With them the report shows what more labels, or another recipe, have gained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.workflow.seed_summary import REPORTED
from jobs.workflow.workspace import Workspace
from pipeline.io import storage

#: Figures of another evaluation that are kept.
KEPT = ("model", "train_samples", "ece", "classes", *(key for key, _ in REPORTED))


def read_evaluation(url: str) -> dict[str, Any] | None:
    """Read an evaluation; None if there is none, or if it cannot be compared because it is of an earlier version."""
    try:
        found = storage.read_json(url)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) and {"model", "test_pixels"} <= found.keys() else None


def earlier_models(workspace: Workspace, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of other models on the same test pixels: of this run's earlier model, then of other runs.

    Args:
        workspace: of the run.
        before: the run's evaluation that is about to be replaced.
        now: the new one.
    """
    found: list[dict[str, Any]] = []
    if before is not None and before["test_pixels"] == now["test_pixels"]:
        if before["model"] != now["model"]:
            found.append(_kept(workspace.run, before))
        else:  # evaluated again: the earlier model is still the one before
            found += [row for row in before.get("earlier", []) if row["run"] == workspace.run]
    for run in sorted(storage.names(storage.join(workspace.url, "runs"))):
        other = None if run == workspace.run else read_evaluation(Workspace(workspace.url, run).evaluation)
        if other is not None and other["test_pixels"] == now["test_pixels"]:
            found.append(_kept(run, other))
    return found


def _kept(run: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {"run": run} | {key: evaluation.get(key) for key in KEPT}


def gain_lines(run: str, evaluation: Mapping[str, Any]) -> list[str]:
    """Say how a run's model differs from each other one, as lines for a terminal."""
    rows: Sequence[Mapping[str, Any]] = evaluation.get("earlier", [])
    return [f"{_which(run, row)} on the same test pixels: {_changes(row, evaluation)}" for row in rows]


def _which(run: str, row: Mapping[str, Any]) -> str:
    return "compared with this run's earlier model" if row["run"] == run else f"compared with run {row['run']!r}"


def _changes(row: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    samples = f"{row['train_samples']:,} to {now['train_samples']:,} training samples"
    known = [(name, row[key], now[key]) for key, name in REPORTED if row[key] is not None and math.isfinite(now[key])]
    return ", ".join([samples, *(f"{name} {before:.3f} to {after:.3f}" for name, before, after in known)])
