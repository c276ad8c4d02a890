"""Early stopping, selection of the epoch whose weights become the model, and warnings about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.config.train import Select

#: Relative rise of the validation loss after its lowest value from which on a warning about overfitting is given.
OVERFITTING_RISE = 0.1


def epoch_lines(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of metrics that cover complete epochs."""
    return [line for line in history if "train_loss" in line]


def chosen_epoch(history: list[dict[str, Any]], select: Select) -> dict[str, Any] | None:
    """The line of the epoch that becomes the model: the best on validation (the first of equals), or the last for "last".

    None if no epoch was validated.
    """
    epochs = epoch_lines(history)
    if select == "last":
        return epochs[-1] if epochs else None
    sign = -1.0 if select == "loss" else 1.0
    figure = f"validation_{select}"
    validated = [line for line in epochs if line.get(figure) is not None and np.isfinite(line[figure])]
    return max(validated, key=lambda line: sign * line[figure]) if validated else None


def should_stop_early(history: list[dict[str, Any]], select: Select, early_stopping_patience: int | None) -> bool:
    """Whether the last validated epoch is at least `early_stopping_patience` epochs after the best validated one."""
    best = chosen_epoch(history, select)
    if early_stopping_patience is None or best is None:
        return False
    last = next(line for line in reversed(epoch_lines(history)) if "validation_loss" in line)
    return bool(last["epoch"] - best["epoch"] >= early_stopping_patience)


def training_warnings(history: list[dict[str, Any]], select: Select, validation_counts: Sequence[int]) -> list[str]:
    """What is wrong with the selected epoch, one sentence each with a remedy; empty without validation.

    `validation_counts` are the numbers of validation samples per class.
    """
    chosen = chosen_epoch(history, select)
    if chosen is None or "validation_loss" not in chosen:
        return []
    epochs = epoch_lines(history)
    validated = [line for line in epochs if "validation_loss" in line]
    found = _overfitting(validated, len(epochs), select)
    if select != "last" and chosen["epoch"] == 1 and len(validated) > 1:
        found.append(
            f"the selected epoch is the first of {len(epochs)}, after {chosen['step']} steps, which may be too few to train "
            "the network. Select by another figure (train.select: loss or macro_f1), validate more often (train.steps with "
            "train.validate_steps), lower train.learning_rate, add labels, or let trials choose (train.recipe: auto)."
        )
    accuracy, share = chosen["validation_overall_accuracy"], max(validation_counts) / sum(validation_counts)
    if accuracy < share:
        found.append(
            f"validation overall accuracy {accuracy:.3f} is below {share:.3f}, the share of the most frequent class: a map "
            "of that class alone would be right more often. Compare with `mibf baseline`, train longer, check the labels, "
            "add more of them, or try boosted trees (model.kind: boosting). Balanced sampling and class weights cost "
            "overall accuracy; `prediction.priors: natural` regains it."
        )
    return found


def _overfitting(validated: list[dict[str, Any]], epochs: int, select: Select) -> list[str]:
    """A warning if the validation loss was lowest in the first half of the epochs, and rose by `OVERFITTING_RISE`."""
    finite = [line for line in validated if np.isfinite(line["validation_loss"])]
    if not finite:
        return []
    lowest, last = min(finite, key=lambda line: line["validation_loss"]), finite[-1]
    before, after = lowest["validation_loss"], last["validation_loss"]
    if 2 * lowest["epoch"] > epochs or after < before * (1 + OVERFITTING_RISE):
        return []
    stop = "" if select == "loss" else "Select by the loss (train.select: loss). "
    return [
        f"the network overfits: the validation loss was lowest after epoch {lowest['epoch']} of {epochs} "
        f"({before:.3f}, step {lowest['step']}) and rose by {after / before - 1:.0%} to {after:.3f} by epoch "
        f"{last['epoch']}. {stop}Regularize (train.augment, train.mixup, train.dropout), add labels, or let trials choose "
        "(train.recipe: auto); `mibf baseline` shows whether simpler learners do better."
    ]
