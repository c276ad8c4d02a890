"""One sentence on whether to use the trained model or a baseline, from their difference and its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: How the run's own model is called: a single network, or boosted trees or a blend of several.
ModelName = Literal["the network", "the model"]


@dataclass(frozen=True)
class Difference:
    """Overall accuracy of the best baseline above that of the trained model on the same pixels, with its interval."""

    value: float
    interval: tuple[float, float] | None  #: lower and upper limits; None with fewer than two blocks


@dataclass(frozen=True)
class Best:
    """The best baseline by overall accuracy."""

    learner: str
    name: str  #: the learner with its features and weights, in words
    accuracy: float


def advice(
    subset: str,
    best: Best,
    *,
    majority: float,
    difference: Difference | None,
    model: ModelName,
    by_trials: bool = False,
    one_source: bool = False,
) -> str:
    """Return one sentence that says what to do.

    Args:
        subset: of the pixels that were classified.
        best: the best baseline.
        majority: overall accuracy of the majority class.
        difference: of the best baseline and the trained model; None without a trained model.
        model: the words for the trained model.
        by_trials: whether the recipe `auto` chose the trained model.
        one_source: whether the trained model has a single source.
    """
    beaten = difference is not None and difference.value < 0
    if best.accuracy <= majority and not beaten:
        return f"Nothing is better than the majority class here ({subset}): check labels, classes and coregistration first."
    if difference is None:
        return (
            f"{_capitalized(best.name)} is the best baseline by overall accuracy ({best.accuracy:.3f}, {subset}; the "
            f"majority class has {majority:.3f}); there is no current trained model to compare with."
        )
    if not math.isfinite(difference.value):
        return f"{_capitalized(model)} and {best.name} cannot be compared: overall accuracy is undefined ({subset})."
    if difference.interval is None or not all(map(math.isfinite, difference.interval)):
        why = "all samples are in one block" if difference.interval is None else "the interval is undefined"
        return f"{_order(best, model, difference, subset)}, but {why}, so the difference may be due to chance."
    low, high = difference.interval
    if low > 0:
        return (
            f"{_order(best, model, difference, subset)}: {_remedy(best, model, by_trials=by_trials, one_source=one_source)}."
        )
    if high < 0:
        return f"{_order(best, model, difference, subset)}: map with it."
    return (
        f"{_capitalized(model)} and {best.name} are level here (a difference of {_points(difference)} of overall accuracy, "
        f"{subset}): more labels in other places would decide."
    )


def _order(best: Best, model: ModelName, difference: Difference, subset: str) -> str:
    """State which one is better, and by how much."""
    if difference.value == 0:
        return f"{_capitalized(model)} and {best.name} are equal here ({subset})"
    better, other = (best.name, model) if difference.value > 0 else (model, best.name)
    return f"{_capitalized(better)} is better here than {other} by {_points(difference)} of overall accuracy ({subset})"


def _remedy(best: Best, model: ModelName, *, by_trials: bool, one_source: bool) -> str:
    """What to do where a baseline is better than the trained model."""
    if by_trials:
        return (
            "the recipe `auto` chose the model by trials on fewer pixels; add labels, give it more time "
            "(`train.budget_minutes`), or set `model.kind: boosting`"
        )
    if model == "the model":
        return "add labels" if one_source else "add labels, or leave out sources that do not help (`model.sources`)"
    if best.learner == "gradient boosting":
        return "add labels, or map with it (`model.kind: boosting`)"
    return "add labels, or try boosted trees as the model (`model.kind: boosting`)"


def _points(difference: Difference) -> str:
    """Format the size of a difference of accuracies in percentage points, with half the width of its interval.

    A skewed interval without 0 can be so wide that this half would suggest that 0 is within it; its limits are given then.
    """
    points = 100 * abs(difference.value)
    if difference.interval is None or not all(map(math.isfinite, difference.interval)):
        return f"{points:.1f} points"
    low, high = sorted(100 * math.copysign(1, difference.value) * limit for limit in difference.interval)
    if low > 0 and (high - low) / 2 >= points:
        return f"{points:.1f} points (95 % interval {low:.1f} to {high:.1f})"
    return f"{points:.1f} ± {(high - low) / 2:.1f} points"


def _capitalized(words: str) -> str:
    return words[:1].upper() + words[1:]
