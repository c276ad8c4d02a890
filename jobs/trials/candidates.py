"""Candidates of a trial: out-of-fold logits of networks by recipe and number of steps, and of boosted trees."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.trials.folds import Folds
from jobs.trials.networks import NetworkRecipe, Trajectory, train_network
from jobs.trials.samples import TrialSamples
from mibf.network.spec import NetworkSpec


@dataclass(frozen=True)
class Candidate:
    """A way to train one model, with its logits of every sample from a model that was not trained on the sample's fold."""

    name: str
    steps: int  #: optimizer steps of a network, rounds of boosted trees
    logits: NDArray[np.float64]  #: (n, classes); NaN for samples that no fold holds out
    seconds: float  #: for all folds


def network_candidates(
    samples: TrialSamples,
    folds: Folds,
    *,
    spec: NetworkSpec,
    recipe: NetworkRecipe,
    checkpoints: Sequence[int],
    seconds: float,
    seed: int,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Candidate], list[str]]:
    """Train a recipe's network in every fold: a candidate for each checkpoint that all folds reached in time.

    Args:
        samples: all samples.
        folds: which of them to train on and to predict.
        spec: of a network of all sources of the samples.
        recipe: what to use of it, and how to train it.
        checkpoints: numbers of steps, in ascending order.
        seconds: for all folds together; what a fold leaves, the next ones may use.
        seed: decides all logits.
        clock: returns a time in seconds.

    Returns:
        The candidates, and notes on what is missing.
    """
    started = clock()
    found: list[Trajectory] = []
    notes: list[str] = []
    for position, fold in enumerate(folds.folds):
        trained = train_network(
            samples,
            fold.training,
            fold.held_out,
            spec=spec,
            recipe=recipe,
            checkpoints=checkpoints,
            seconds=(seconds - (clock() - started)) / (len(folds.folds) - position),
            seed=seed,
            clock=clock,
        )
        if trained.note is not None:
            notes.append(f"{recipe.name}, fold {position + 1} of {len(folds.folds)}: {trained.note}")
        found.append(trained)
        checkpoints = [steps for steps in checkpoints if steps in trained.logits]
        if not checkpoints:
            break
    candidates = [
        Candidate(
            recipe.name,
            steps,
            _pooled(len(samples), folds, [t.logits[steps] for t in found]),
            sum(t.seconds[steps] for t in found),
        )
        for steps in checkpoints
    ]
    return candidates, notes


def _pooled(samples: int, folds: Folds, logits: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Put the logits of all folds' held-out samples (m, classes) in the samples' order (n, classes)."""
    found = np.full((samples, logits[0].shape[1]), np.nan)
    for fold, own in zip(folds.folds, logits, strict=True):
        found[fold.held_out] = own
    return found
