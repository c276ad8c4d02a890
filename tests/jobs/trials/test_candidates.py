"""Candidates of trials: out-of-fold logits of networks and boosted trees, and what is kept when time runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from jobs.trials.candidates import network_candidates, tree_candidates
from jobs.trials.folds import Folds
from jobs.trials.networks import NetworkRecipe, train_network
from jobs.trials.samples import TrialSamples
from mibf.network.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from pipeline.classifiers.trees import fit_trees

SPEC = NetworkSpec((SourceSpec("optical", 2, WIDE), SourceSpec("radar", 1, NARROW, 2)), classes=2, patch=5)
RECIPE = NetworkRecipe("plain", batch_size=16, warmup=2)


def test_candidates_hold_out_of_fold_logits(samples: TrialSamples, folds: Folds) -> None:
    given = {"spec": SPEC, "recipe": RECIPE, "checkpoints": (2, 4), "seconds": 1e9, "seed": 0}
    found, notes = network_candidates(samples, folds, **given)
    assert [(c.name, c.steps) for c in found] == [("plain", 2), ("plain", 4)]
    assert notes == []
    assert all(np.isfinite(c.logits).all() and c.logits.shape == (90, 2) for c in found)
    assert found[0].seconds < found[1].seconds
    fold = folds.folds[1]
    own = train_network(samples, fold.training, fold.held_out, **given)
    np.testing.assert_array_equal(found[1].logits[fold.held_out], own.logits[4])


def test_only_checkpoints_that_all_folds_reached_are_candidates(
    samples: TrialSamples, folds: Folds, ticking: Callable[[float], Callable[[], float]]
) -> None:
    found, notes = network_candidates(
        samples, folds, spec=SPEC, recipe=RECIPE, checkpoints=(2, 4, 1000), seconds=125, seed=0, clock=ticking(5)
    )
    assert [c.steps for c in found] == [2, 4]
    assert notes == ["plain, fold 1 of 3: stopped after 4 of 1000 steps: 40 s are used up"]


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_without_time_the_first_checkpoint_is_still_reached(samples: TrialSamples, folds: Folds, seconds: float) -> None:
    found, _ = network_candidates(samples, folds, spec=SPEC, recipe=RECIPE, checkpoints=(2, 4), seconds=seconds, seed=0)
    assert [c.steps for c in found] == [2]


@pytest.mark.parametrize("balanced", [False, True])
def test_trees_are_candidates_by_rounds(samples: TrialSamples, folds: Folds, balanced: bool) -> None:
    found, notes = tree_candidates(
        samples, folds, classes=3, rounds=(5, 30), seconds=1e9, seed=0, balanced=balanced, threads=1
    )
    assert [(c.name, c.steps) for c in found] == [(f"boosted trees{' (balanced)' if balanced else ''}", n) for n in (5, 30)]
    assert notes == []
    fold = folds.folds[1]
    labels = samples.labels[fold.training]
    weights = (len(labels) / 2 / np.bincount(labels))[labels] if balanced else None
    own = fit_trees(samples.features[fold.training], labels, classes=3, weights=weights, rounds=30, seed=0, threads=1)
    np.testing.assert_array_equal(found[1].logits[fold.held_out], own.scores(samples.features[fold.held_out]))
    assert (found[1].logits.argmax(axis=1) == samples.labels).mean() > 0.8


def test_trees_do_not_see_held_out_labels(samples: TrialSamples, folds: Folds) -> None:
    held = folds.folds[0].held_out
    labels = samples.labels.copy()
    labels[held] = 1 - labels[held]
    given = {"classes": 2, "rounds": (5,), "seconds": 1e9, "seed": 0, "threads": 1}
    (before,), _ = tree_candidates(samples, folds, **given)
    (after,), _ = tree_candidates(replace(samples, labels=labels), folds, **given)
    np.testing.assert_array_equal(before.logits[held], after.logits[held])
