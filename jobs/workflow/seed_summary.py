"""Summarise models that differ only in their seed: accuracies of each, their mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: The reported accuracies: key and name.
REPORTED = (
    ("overall_accuracy", "overall accuracy"),
    ("average_accuracy", "average accuracy"),
    ("macro_f1", "macro-F1"),
    ("kappa", "kappa"),
)


def format_accuracies(figures: Mapping[str, Any]) -> str:
    """Format the accuracies of one model; undefined values, such as kappa with a single class, as `-`."""
    values = {name: np.nan if figures[key] is None else figures[key] for key, name in REPORTED}
    return ", ".join(f"{name} {value:.3f}" if np.isfinite(value) else f"{name} -" for name, value in values.items())


def format_with_interval(value: float, interval: tuple[float, float] | None) -> str:
    """Format a metric with its interval, as far as they are defined."""
    if not np.isfinite(value):
        return "-"
    if interval is None or not np.isfinite(interval).all():
        return f"{value:.3f}"
    low, high = interval
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def mean_and_deviation(figures: Sequence[Mapping[str, Any]]) -> str:
    """Format the mean and the sample standard deviation (n - 1) of the accuracies of two or more models."""
    parts = []
    for key, name in REPORTED:
        values = np.array([f[key] for f in figures], float)
        parts.append(f"{name} {values.mean():.3f} ± {values.std(ddof=1):.3f}")
    return ", ".join(parts)
