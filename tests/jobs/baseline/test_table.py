"""The advice on baselines for each outcome, their tables, and the blocks of the bootstrap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import jobs.baseline.samples
from jobs.baseline.advice import Best, Difference, ModelName, advice
from jobs.baseline.samples import Samples
from jobs.baseline.table import Baselines, Row, SubsetTable
from pipeline.grid import Window
from pipeline.sampling.drawn_pixels import DrawnPixels

FOREST = "random forest on pixel values"


def row(learner: str, accuracy: float) -> Row:
    figures = dict.fromkeys(("overall_accuracy", "average_accuracy", "kappa", "macro_f1", "ece"), accuracy)
    return Row(learner, None, None, figures | {"kappa": np.nan}, None, 1.0, 10)


def table(difference: Difference | None, *, majority: float = 0.5) -> SubsetTable:
    rows = [row("majority class", majority), row("random forest", 0.8)]
    if difference is not None:
        rows.append(row("MIBF-Net", 0.8 - difference.value))
    return SubsetTable("validation", 90, 100, 4, 20, rows, FOREST, difference)


BOOSTING = Best("gradient boosting", "gradient boosting on pixel values", 0.8)
TREES = Best("random forest", FOREST, 0.8)
LABELS_OR_BOOSTING = "add labels, or map with it (`model.kind: boosting`)."


def advised(difference: Difference | None, best: Best = BOOSTING, model: ModelName = "the network") -> str:
    return advice("validation", best, majority=0.5, difference=difference, model=model)


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (
            Difference(0.018, (0.009, 0.027)),
            "Gradient boosting on pixel values is better here than the network by 1.8 ± 0.9 points of overall accuracy "
            f"(validation): {LABELS_OR_BOOSTING}",
        ),
        (
            Difference(-0.03, (-0.04, -0.01)),
            "The network is better here than gradient boosting on pixel values by 3.0 ± 1.5 points of overall accuracy "
            "(validation): map with it.",
        ),
        (
            Difference(0.01, (-0.02, 0.03)),
            "The network and gradient boosting on pixel values are level here (a difference of 1.0 ± 2.5 points of overall "
            "accuracy, validation): more labels in other places would decide.",
        ),
        (
            Difference(-0.01, (-0.04, 0.0)),
            "The network and gradient boosting on pixel values are level here (a difference of 1.0 ± 2.0 points of overall "
            "accuracy, validation): more labels in other places would decide.",
        ),
        (
            Difference(0.01, (0.001, 0.05)),  # skewed: 1.0 ± 2.5 would hold 0, and the interval does not
            "Gradient boosting on pixel values is better here than the network by 1.0 points (95 % interval 0.1 to 5.0) of "
            f"overall accuracy (validation): {LABELS_OR_BOOSTING}",
        ),
        (
            Difference(-0.01, (-0.05, -0.001)),
            "The network is better here than gradient boosting on pixel values by 1.0 points (95 % interval 0.1 to 5.0) of "
            "overall accuracy (validation): map with it.",
        ),
        (
            Difference(0.01, None),
            "Gradient boosting on pixel values is better here than the network by 1.0 points of overall accuracy "
            "(validation), but all samples are in one block, so the difference may be due to chance.",
        ),
        (
            Difference(-0.02, None),
            "The network is better here than gradient boosting on pixel values by 2.0 points of overall accuracy "
            "(validation), but all samples are in one block, so the difference may be due to chance.",
        ),
        (
            Difference(0.0, None),
            "The network and gradient boosting on pixel values are equal here (validation), but all samples are in one "
            "block, so the difference may be due to chance.",
        ),
        (
            Difference(0.01, (np.nan, np.nan)),
            "Gradient boosting on pixel values is better here than the network by 1.0 points of overall accuracy "
            "(validation), but the interval is undefined, so the difference may be due to chance.",
        ),
        (
            Difference(np.nan, (np.nan, np.nan)),
            "The network and gradient boosting on pixel values cannot be compared: overall accuracy is undefined "
            "(validation).",
        ),
        (
            None,
            "Gradient boosting on pixel values is the best baseline by overall accuracy (0.800, validation; the majority "
            "class has 0.500); there is no current trained model to compare with.",
        ),
    ],
)
def test_advice_follows_from_the_interval(difference: Difference | None, sentence: str) -> None:
    assert advised(difference) == sentence


def test_advice_names_what_helps_each_kind_of_model() -> None:
    model: ModelName
    better = Difference(0.02, (0.01, 0.03))
    assert advised(better).endswith(LABELS_OR_BOOSTING)
    assert advised(better, TREES).endswith("add labels, or try boosted trees as the model (`model.kind: boosting`).")
    for best in (TREES, BOOSTING):
        found = advised(better, best, "the model")
        assert "better here than the model by" in found
        assert found.endswith("add labels, or leave out sources that do not help (`model.sources`).")
    alone = advice("validation", TREES, majority=0.5, difference=better, model="the model", one_source=True)
    assert alone.endswith("(validation): add labels.")
    for model in ("the network", "the model"):
        found = advice("validation", TREES, majority=0.5, difference=better, model=model, by_trials=True)
        assert found.endswith(
            "(validation): the recipe `auto` chose the model by trials on fewer pixels; add labels, give it more time "
            "(`train.budget_minutes`), or set `model.kind: boosting`."
        )
    assert advised(Difference(-0.02, (-0.03, -0.01)), model="the model").startswith("The model is better here than")


def test_advice_where_nothing_beats_the_majority_class() -> None:
    assert table(None, majority=0.9).advice.startswith("Nothing is better than the majority class here (validation)")
    assert "majority" in table(Difference(0.0, (-0.1, 0.1)), majority=0.9).advice
    assert "map with it" in table(Difference(-0.1, (-0.2, -0.05)), majority=0.9).advice


def baselines(*tables: SubsetTable) -> Baselines:
    return Baselines(90, 100, 0, 10.0, ["a", "b"], ["look"], tables)


def test_test_pixels_advise_nothing() -> None:
    validation = table(Difference(0.018, (0.009, 0.027)))
    test = replace(table(Difference(-0.03, (-0.04, -0.01))), subset="test")
    assert baselines(test, validation).advice == validation.advice
    assert baselines(test, validation).to_json()["advice"] == validation.advice
    assert baselines(test).advice is None
    assert "map with it" not in "\n".join(baselines(test).summary())


def test_summary_shows_the_best_variant_of_each_learner_and_the_model() -> None:
    made = table(Difference(0.01, None))
    worse = replace(row("random forest", 0.7), features="values", weights="natural")
    lines = baselines(replace(made, rows=[*made.rows[:2], worse, made.rows[-1]])).summary()
    assert lines[0] == made.advice
    assert lines[1] == "validation: 90 of 100 samples in 4 blocks of 20 x 20 pixels; 95 % intervals:"
    assert [line.split() for line in lines[2:6]] == [
        ["OA", "AA", "kappa", "macro-F1", "ECE"],
        ["majority", "class", "0.500", "0.500", "-", "0.500", "0.500"],
        ["random", "forest", "0.800", "0.800", "-", "0.800", "0.800"],
        ["MIBF-Net", "0.790", "0.790", "-", "0.790", "0.790"],
    ]
    assert lines[6:] == ["2 fits left out to keep to 10 s; set `baselines.seconds` to allow more", "note: look"]


def test_lines_state_samples_blocks_and_undefined_metrics() -> None:
    lines = table(None).lines()
    assert lines[0].startswith("validation: 90 of 100 samples in 4 blocks of 20 x 20 pixels")
    assert "| random forest | - | - | 0.800 | 0.800 | - | 0.800 | 0.800 | 1.0 | 10 |" in lines


def test_blocks_are_those_of_the_grid_and_merged_if_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = np.array([0, 19, 20, 45]), np.array([0, 0, 0, 100])
    window = Window(128, 0, 128, 128)
    drawn = [DrawnPixels(store, window, rows, columns, np.zeros(4, int)) for store in (0, 1)]
    samples = Samples(drawn, np.zeros((8, 1), np.float32))
    block, number, side = samples.blocks(20)
    assert (number, side) == (6, 20)
    # Rows 128 and 147, 148, 173: block rows 6, 7, 7, 8.
    assert block.tolist() == [0, 1, 1, 2, 3, 4, 4, 5]
    monkeypatch.setattr(jobs.baseline.samples, "MOST_BLOCKS", 3)
    block, number, side = samples.blocks(20)
    assert (number, side) == (2, 320)
    assert block.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_part_of_samples_keeps_pixels_with_their_features_and_drops_empty_windows() -> None:
    windows = [Window(0, x, 128, 128) for x in (0, 128, 256)]
    drawn = [DrawnPixels(0, w, np.arange(2), np.arange(2) + w.x, np.arange(2) + i) for i, w in enumerate(windows)]
    samples = Samples(drawn, np.arange(6, dtype=np.float32)[:, None])
    part = samples.part(np.array([False, True, False, False, True, True]))
    assert [d.window for d in part.drawn] == [windows[0], windows[2]]
    assert [d.columns.tolist() for d in part.drawn] == [[1], [256, 257]]
    assert part.labels.tolist() == [1, 2, 3]
    assert part.features[:, 0].tolist() == [1, 4, 5]
