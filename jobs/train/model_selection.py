"""Early stopping, and selection of the epoch whose weights become the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.config.train import Select


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
