"""Early stopping and model selection from the recorded metrics."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.train.model_selection import chosen_epoch, should_stop_early, training_warnings
from jobs.train.networks import _lines


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


@pytest.mark.parametrize(
    ("losses", "over"),
    [
        ([0.5, 0.6], False),
        ([0.5, 0.6, 0.6], True),
        ([0.5, 0.6, 0.4], False),
        ([0.5, float("nan"), float("nan")], True),
        ([float("nan")] * 3, False),
    ],
)
def test_early_stopping_by_loss_counts_epochs_since_the_lowest(losses: list[float], over: bool) -> None:
    assert should_stop_early(validated(losses, [0.5] * len(losses)), "loss", 2) is over


def test_earliest_of_equally_good_epochs_is_selected() -> None:
    line = chosen_epoch(history([0.4, 0.6, None, 0.6, float("nan")]), "kappa")
    assert line is not None
    assert line["epoch"] == 2
    assert chosen_epoch(history([None, None]), "kappa") is None


def validated(losses: list[float], accuracies: list[float]) -> list[dict[str, Any]]:
    """Return the metrics lines of validated epochs of 10 steps."""
    return [
        {
            "seed": 0,
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 1.0,
            "validation_loss": loss,
            "validation_overall_accuracy": accuracy,
        }
        for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("losses", "warned"),
    [
        ([0.9, 0.5, 0.6, 0.7, 0.8], "lowest after epoch 2 of 5 (0.500, step 20) and rose by 60% to 0.800 by epoch 5"),
        ([0.9, 0.5, 0.6, 0.7, 0.54], None),  # too small a rise
        ([0.9, 0.8, 0.7, 0.5, 0.9], None),  # late
        ([0.9, 0.5, float("nan"), 0.7, float("nan")], "rose by 40% to 0.700 by epoch 4"),
        ([float("nan")] * 5, None),
    ],
)
def test_early_minimum_of_validation_loss_and_a_rise_after_it_are_overfitting(
    losses: list[float], warned: str | None
) -> None:
    found = training_warnings(validated(losses, [0.1, 0.2, 0.3, 0.6, 0.7]), "overall_accuracy", [5, 5])
    assert [warned is not None and warned in line for line in found] == ([True] if warned else [])


@pytest.mark.parametrize(
    ("accuracies", "select", "warned"),
    [
        ([0.7, 0.6, 0.65], "overall_accuracy", True),
        ([0.6, 0.7, 0.65], "overall_accuracy", False),
        ([0.7, 0.6, 0.65], "last", False),
        ([0.7], "overall_accuracy", False),  # there is only one
    ],
)
def test_selection_of_the_first_of_several_epochs_is_warned_about(
    accuracies: list[float], select: Any, warned: bool
) -> None:
    found = training_warnings(validated([0.5] * len(accuracies), accuracies), select, [5, 5])
    assert [f"the first of {len(accuracies)}, after 10 steps" in line for line in found] == ([True] if warned else [])


def test_accuracy_below_the_share_of_the_most_frequent_class_is_warned_about() -> None:
    lines = validated([0.5, 0.4], [0.3, 0.52])
    (found,) = training_warnings(lines, "overall_accuracy", [53, 40, 7])
    assert "validation overall accuracy 0.520 is below 0.530, the share of the most frequent class" in found
    assert training_warnings(lines, "overall_accuracy", [52, 41, 7]) == []


def test_training_without_validation_gives_no_warnings() -> None:
    assert training_warnings(history([None, None]), "last", [0, 0]) == []


def test_warnings_of_the_selected_seed_are_in_the_summary() -> None:
    figures = {"overall_accuracy": 0.5, "average_accuracy": 0.5, "macro_f1": 0.5, "kappa": 0.0, "ece": 0.1, "brier": 0.2}
    chosen = {"epoch": 1, "temperature": 1.0, "validation_overall_accuracy": 0.5}
    result = {"chosen": chosen, "calibrated": {"trained": figures}, "uncalibrated": figures}
    results = {3: result | {"warnings": ["one."]}, 4: result | {"warnings": ["other."]}, 5: result}
    assert _lines(results, 3, "kappa")[-1] == "warning: seed 3, one."
    assert not any("warning" in line for line in _lines(results, 5, "kappa"))
