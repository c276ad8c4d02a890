"""Early stopping and model selection from the recorded metrics."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.train.model_selection import chosen_epoch, should_stop_early


def history(accuracies: list[float | None]) -> list[dict[str, Any]]:
    """Return metrics lines for the epochs; None marks an epoch without validation."""
    lines: list[dict[str, Any]] = []
    for epoch, accuracy in enumerate(accuracies, 1):
        lines.append({"seed": 0, "epoch": epoch, "step": epoch * 10, "loss": 1.0})  # a line of a step
        line: dict[str, Any] = {"seed": 0, "epoch": epoch, "train_loss": 1.0}
        lines.append(line if accuracy is None else line | {"validation_loss": 1.0, "validation_kappa": accuracy})
    return lines


@pytest.mark.parametrize(
    ("accuracies", "early_stopping_patience", "over"),
    [
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.4], 2, True),
        ([0.5, 0.4, 0.6], 2, False),
        ([None, None], 1, False),
        # An epoch without validation may be better, so training stops only at a validation.
        ([None, 0.5, None], 1, False),
        ([None, 0.5, None, 0.6], 1, False),
        ([None, 0.5, None, 0.5], 1, True),
        ([0.5, 0.4, 0.4], None, False),
    ],
)
def test_early_stopping_triggers_only_at_validation(
    accuracies: list[float | None], early_stopping_patience: int | None, over: bool
) -> None:
    assert should_stop_early(history(accuracies), "kappa", early_stopping_patience) is over


def test_earliest_of_equally_good_epochs_is_selected() -> None:
    line = chosen_epoch(history([0.4, 0.6, None, 0.6, float("nan")]), "kappa")
    assert line is not None
    assert line["epoch"] == 2
    assert chosen_epoch(history([None, None]), "kappa") is None
