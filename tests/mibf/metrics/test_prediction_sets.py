"""Prediction sets: thresholds against the textbook quantile, coverage of new blocks by simulation, sets, and their JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.metrics.calibration import Reliability
from mibf.metrics.prediction_sets import (
    PERCENT,
    PredictionSets,
    SetChoice,
    Thresholds,
    fit_thresholds,
    least_blocks,
    set_figures,
    set_members,
)


def probabilities_of(generator: np.random.Generator, labels: np.ndarray, classes: int, skill: np.ndarray) -> np.ndarray:
    """Softmax probabilities that favour the label by `skill`, one number a pixel."""
    logits = generator.normal(0, 1, (len(labels), classes)) + skill[:, None] * np.eye(classes)[labels]
    found: np.ndarray = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return found


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_thresholds_of_single_pixels_are_those_of_split_conformal_prediction(seed: int, pixels: int, classes: int) -> None:
    """With a block for each pixel: the ceil((n + 1) * coverage)-th smallest score, or all classes if there is none."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, pixels)
    probabilities = probabilities_of(generator, labels, classes, np.ones(pixels))
    fitted = fit_thresholds(probabilities, labels, np.arange(pixels))
    own = probabilities[np.arange(pixels), labels]
    scores = np.sort(np.where(probabilities.argmax(axis=1) == labels, 0.0, 1 - own))
    for percent, threshold in zip(PERCENT, fitted.together, strict=True):
        rank = -(-(pixels + 1) * percent // 100)
        expected = 0.0 if rank > pixels else 1 - scores[rank - 1]
        assert threshold == pytest.approx(expected, abs=1.1e-6)
        assert threshold <= expected + 1e-12  # rounded towards larger sets
    assert list(fitted.together) == sorted(fitted.together, reverse=True)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_pixels_of_new_blocks_are_covered_as_stated(coverage: float) -> None:
    """Blocks differ in skill and size, pixels of a block are alike: as many calibrations as are needed for 1 %."""
    generator, blocks, classes = np.random.default_rng(4), 20, 4
    covered, by_pixels = [], []
    for _ in range(400):
        sizes = generator.integers(5, 60, blocks + 1)
        block = np.repeat(np.arange(blocks + 1), sizes)
        skill = generator.normal(1.5, 1.5, blocks + 1)[block]
        labels = generator.integers(0, classes, len(block))
        probabilities = probabilities_of(generator, labels, classes, skill)
        known = block < blocks

        def share(calibration: np.ndarray, given: tuple[np.ndarray, ...] = (probabilities, labels, known)) -> float:
            likely, classes_of, is_known = given
            fitted = fit_thresholds(likely[is_known], classes_of[is_known], calibration[is_known])
            least = (fitted.together[PERCENT.index(round(100 * coverage))],) * classes
            members = set_members(torch.from_numpy(likely[~is_known]), least, dim=1).numpy()
            return float(members[np.arange(len(members)), classes_of[~is_known]].mean())

        covered.append(share(block))
        by_pixels.append(share(np.arange(len(block))))
    error = np.std(covered) / math.sqrt(len(covered))
    assert coverage - 3 * error < np.mean(covered) < coverage + 2 / (blocks + 1) + 3 * error
    assert np.mean(by_pixels) < np.mean(covered)  # as if pixels were exchangeable: less than is promised


def test_weights_stand_for_pixels_that_were_not_drawn() -> None:
    generator = np.random.default_rng(0)
    labels, blocks = generator.integers(0, 3, 300), generator.integers(0, 12, 300)
    probabilities = probabilities_of(generator, labels, 3, np.ones(300))
    times = np.array([1, 4, 2])[labels]
    repeated = np.repeat(np.arange(300), times)
    assert fit_thresholds(probabilities, labels, blocks, times) == fit_thresholds(
        probabilities[repeated], labels[repeated], blocks[repeated]
    )


def test_too_few_blocks_exclude_no_class() -> None:
    generator = np.random.default_rng(1)
    labels, blocks = np.repeat([0, 1], 40), np.tile(np.arange(10), 8)
    blocks[labels == 1] %= 4
    fitted = fit_thresholds(probabilities_of(generator, labels, 3, np.full(80, 9.0)), labels, blocks)
    sets = PredictionSets(96, 80, 10, (10, 4, 0), {"trained": fitted})
    assert least_blocks(0.9) == 9
    assert sets.never_excluded(SetChoice(0.9)) == []
    assert sets.never_excluded(SetChoice(0.9, class_conditional=True)) == [1, 2]
    assert sets.never_excluded(SetChoice(0.95)) == [0, 1, 2]
    assert sets.thresholds("trained", SetChoice(0.9, class_conditional=True))[1:] == (0.0, 0.0)
    assert set(sets.thresholds("trained", SetChoice(0.95))) == {0.0}
    assert set(sets.thresholds("trained", SetChoice(0.9))) == {1.0}  # all are right: one class each


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_sets_hold_the_most_probable_class_and_grow_as_thresholds_fall(seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = torch.from_numpy(generator.dirichlet(np.ones(4), 50)).float()
    high = generator.uniform(0, 1, 4)
    small, large = (set_members(probabilities, tuple(high * factor), dim=1) for factor in (1.0, 0.7))
    assert (small <= large).all()
    assert small.gather(1, probabilities.argmax(dim=1, keepdim=True)).all()
    planes = set_members(probabilities.T.reshape(4, 5, 10), tuple(high), dim=0)
    assert (small == planes.reshape(4, 50).T).all()


def test_counts_of_reliability_are_those_of_sets_by_hand() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 200)  # no sample of the last class
    probabilities = probabilities_of(generator, labels, 4, np.ones(200))
    least = (0.3, 0.2, 0.4, 0.1)
    members = (probabilities >= least) | (probabilities == probabilities.max(axis=1, keepdims=True))
    hit, size = members[np.arange(200), labels], members.sum(axis=1)
    halves = []
    for part in (slice(0, 70), slice(70, None)):
        half = Reliability(4, torch.device("cpu"), thresholds=least)
        half.add(torch.from_numpy(probabilities[part]).log(), torch.from_numpy(labels[part]))
        halves.append(half)
    figures = (halves[0] + halves[1]).set_figures()
    assert figures["coverage"] == pytest.approx(hit.mean())
    assert figures["mean_size"] == pytest.approx(size.mean())
    assert figures["single_share"] == pytest.approx((size == 1).mean())
    assert figures["classes"][1]["coverage"] == pytest.approx(hit[labels == 1].mean())
    assert math.isnan(figures["classes"][3]["coverage"])
    assert math.isnan(set_figures(np.zeros((4, 2), np.int64))["coverage"])


SETS = PredictionSets(20, 100, 11, (11, 9), {"trained": Thresholds((0.25,) * 50, ((0.5,) * 50, (0.125,) * 50))})


def test_json_is_read_back_and_invalid_values_are_refused() -> None:
    value = json.loads(json.dumps(SETS.to_json()))
    assert PredictionSets.from_json(value, classes=2) == SETS
    own = value["by_priors"]["trained"]
    changes: list[dict[str, Any]] = [
        {"blocks": -1},
        {"percent": [90]},
        {"class_blocks": [1]},
        {"by_priors": {}},
        {"by_priors": {"other": own}},
        {"by_priors": {"trained": own | {"together": [2.0] * 50}}},
        {"by_priors": {"trained": own | {"by_class": [[0.5] * 50]}}},
    ]
    for change in changes:
        with pytest.raises(ValueError, match="thresholds of prediction sets"):
            PredictionSets.from_json(value | change, classes=2)
