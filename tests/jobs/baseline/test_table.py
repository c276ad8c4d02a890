"""The advice of `mibf baseline` for each outcome, and the blocks of its bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

import jobs.baseline.samples
from jobs.baseline.samples import Samples
from jobs.baseline.table import Difference, Row, SubsetTable
from pipeline.grid import Window
from pipeline.sampling.drawn_pixels import DrawnPixels

FOREST = "random forest on pixel values"


def row(learner: str, accuracy: float) -> Row:
    figures = dict.fromkeys(("overall_accuracy", "average_accuracy", "kappa", "macro_f1", "ece"), accuracy)
    return Row(learner, None, None, figures | {"kappa": np.nan}, None, 1.0, 10)


def table(difference: Difference | None, *, majority: float = 0.5) -> SubsetTable:
    rows = [row("majority class", majority), row("random forest", 0.8)]
    return SubsetTable("validation", 90, 100, 4, 20, rows, FOREST, difference)


@pytest.mark.parametrize(
    ("difference", "advice"),
    [
        (Difference(0.018, (0.009, 0.027)), f"{FOREST} is better here by 1.8 ± 0.9 points of overall accuracy: add labels"),
        (Difference(-0.03, (-0.04, -0.01)), "the trained model is better here by 3.0 ± 1.5 points of overall accuracy than"),
        (Difference(0.01, (-0.02, 0.03)), f"{FOREST} do not differ beyond chance here (1.0 ± 2.5 points"),
        (Difference(0.01, None), "all samples are in one block, so the difference may be due to chance"),
        (None, f"{FOREST} is the best baseline by overall accuracy (0.800; the majority class has 0.500)"),
    ],
)  # fmt: skip  # a table
def test_advice_follows_from_the_interval(difference: Difference | None, advice: str) -> None:
    assert advice in table(difference).advice


def test_advice_where_nothing_beats_the_majority_class() -> None:
    assert table(None, majority=0.9).advice.startswith("nothing is better than the majority class here")
    assert "majority" in table(Difference(0.0, (-0.1, 0.1)), majority=0.9).advice
    assert "map with it" in table(Difference(-0.1, (-0.2, -0.05)), majority=0.9).advice


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
