"""What is told of models that differ in their seed alone: each one's accuracies, their mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: What is told of the accuracy of several seeds.
TOLD = (
    ("overall_accuracy", "overall accuracy"),
    ("average_accuracy", "average accuracy"),
    ("macro_f1", "macro-F1"),
    ("kappa", "kappa"),
)


def told(figures: Mapping[str, Any]) -> str:
    """The accuracies of one model, as text; those that are not defined, as kappa of one class alone, as `-`."""
    values = {name: np.nan if figures[key] is None else figures[key] for key, name in TOLD}
    return ", ".join(f"{name} {value:.3f}" if np.isfinite(value) else f"{name} -" for name, value in values.items())


def spread(figures: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation (of a sample: n - 1) of the accuracies of two or more models, as text."""
    parts = []
    for key, name in TOLD:
        values = np.array([f[key] for f in figures], float)
        parts.append(f"{name} {values.mean():.3f} ± {values.std(ddof=1):.3f}")
    return ", ".join(parts)
