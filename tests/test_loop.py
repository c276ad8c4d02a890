"""The training loop's choices by its lines of metrics."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.loop import chosen, is_patience_over


def history(accuracies: list[float | None]) -> list[dict[str, Any]]:
    """Lines on epochs; None for one that was not validated."""
    lines: list[dict[str, Any]] = []
    for epoch, accuracy in enumerate(accuracies, 1):
        lines.append({"seed": 0, "epoch": epoch, "step": epoch * 10, "loss": 1.0})  # of steps
        line: dict[str, Any] = {"seed": 0, "epoch": epoch, "train_loss": 1.0}
        lines.append(line if accuracy is None else line | {"validation_loss": 1.0, "validation_kappa": accuracy})
    return lines


@pytest.mark.parametrize(
    ("accuracies", "patience", "over"),
    [
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.4], 2, True),
        ([0.5, 0.4, 0.6], 2, False),
        ([None, None], 1, False),
        # Epochs that were not validated may be better: patience ends at a validation.
        ([None, 0.5, None], 1, False),
        ([None, 0.5, None, 0.6], 1, False),
        ([None, 0.5, None, 0.5], 1, True),
        ([0.5, 0.4, 0.4], None, False),
    ],
)
def test_patience_is_over_when_a_validation_says_so(
    accuracies: list[float | None], patience: int | None, over: bool
) -> None:
    assert is_patience_over(history(accuracies), "kappa", patience) is over


def test_the_first_of_the_best_epochs_is_chosen() -> None:
    line = chosen(history([0.4, 0.6, None, 0.6, float("nan")]), "kappa")
    assert line is not None
    assert line["epoch"] == 2
    assert chosen(history([None, None]), "kappa") is None
