"""Candidates of a trial: out-of-fold logits of networks by recipe and number of steps, and of classifiers of features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.trials.folds import Fold, Folds
from jobs.trials.networks import NetworkRecipe, train_network
from jobs.trials.samples import TrialSamples
from jobs.trials.trajectory import Clock, Trajectory, follow
from mibf.network.spec import NetworkSpec
from pipeline.classifiers.linear import ITERATIONS, fit_linear
from pipeline.classifiers.trees import fit_trees

#: What a candidate is; as the kinds of a bundle's members.
Kind = Literal["network", "trees", "linear"]
#: Names of boosted trees and of logistic regression among the candidates.
TREES, LINEAR = "boosted trees", "logistic regression"
#: Values of the features of a trial to which logistic regression is fitted, at most: it is fitted often.
LINEAR_VALUES = 2_000_000


@dataclass(frozen=True)
class Candidate:
    """A way to train one model, with its logits of every sample from a model that was not trained on the sample's fold."""

    name: str
    kind: Kind
    steps: int  #: optimizer steps of a network, rounds of boosted trees, iterations of logistic regression at most
    logits: NDArray[np.float64]  #: (n, classes); NaN for samples that no fold holds out
    seconds: float  #: for all folds
    single_source: bool = False  #: whether it is a network on one of several sources
    penalty: float | None = None  #: of logistic regression


def network_candidates(
    samples: TrialSamples,
    folds: Folds,
    *,
    spec: NetworkSpec,
    recipe: NetworkRecipe,
    checkpoints: Sequence[int],
    seconds: float,
    seed: int,
    clock: Clock = time.monotonic,
) -> tuple[list[Candidate], list[str]]:
    """Train a recipe's network in every fold: a candidate for each checkpoint that all folds reached in time.

    Args:
        samples: all samples.
        folds: which of them to train on and to predict.
        spec: of a network of all sources of the samples.
        recipe: what to use of it, and how to train it.
        checkpoints: numbers of optimizer steps, in ascending order.
        seconds: for all folds together; what a fold leaves, the next ones may use.
        seed: decides all logits.
        clock: returns a time in seconds.

    Returns:
        The candidates, and notes on what is missing.
    """

    def train(fold: Fold, checkpoints: Sequence[int], seconds: float) -> Trajectory:
        return train_network(
            samples,
            fold.training,
            fold.held_out,
            spec=spec,
            recipe=recipe,
            checkpoints=checkpoints,
            seconds=seconds,
            seed=seed,
            clock=clock,
        )

    found, notes = _in_folds(
        recipe.name, "network", train, len(samples), folds, checkpoints=checkpoints, seconds=seconds, clock=clock
    )
    single = recipe.sources is not None and len(recipe.sources) < len(samples.sources)
    return [replace(each, single_source=single) for each in found], notes


def tree_candidates(
    samples: TrialSamples,
    folds: Folds,
    *,
    classes: int,
    rounds: Sequence[int],
    seconds: float,
    seed: int,
    balanced: bool = False,
    threads: int | None = None,
    clock: Clock = time.monotonic,
) -> tuple[list[Candidate], list[str]]:
    """Train boosted trees on the features in every fold: a candidate for each number of rounds that all folds reached.

    Each number is trained from the start: with the same seed the first rounds are the same. No sample stops training, so
    that the held-out ones do not choose the rounds by which they are measured.

    Args:
        samples: all samples.
        folds: which of them to train on and to predict.
        classes: number of classes.
        rounds: numbers of rounds, in ascending order.
        seconds: for all folds together; what a fold leaves, the next ones may use.
        seed: decides all scores.
        balanced: weight samples inversely to the frequency of their class.
        threads: for LightGBM; default as in `fit_trees`.
        clock: returns a time in seconds.

    Returns:
        The candidates, and notes on what is missing.

    Raises:
        InputError: LightGBM cannot be loaded.
    """

    def train(fold: Fold, checkpoints: Sequence[int], seconds: float) -> Trajectory:
        features, labels = samples.features[fold.training], samples.labels[fold.training]
        counts = np.bincount(labels, minlength=classes)
        weights = len(labels) / (np.count_nonzero(counts) * counts[labels]) if balanced else None

        def predict(number: int) -> NDArray[np.float64]:
            trees = fit_trees(features, labels, classes=classes, weights=weights, rounds=number, seed=seed, threads=threads)
            return trees.scores(samples.features[fold.held_out], threads=threads)

        return follow(checkpoints, predict, seconds=seconds, clock=clock)

    name = f"{TREES} (balanced)" if balanced else TREES
    return _in_folds(name, "trees", train, len(samples), folds, checkpoints=rounds, seconds=seconds, clock=clock)


def linear_candidates(
    samples: TrialSamples,
    folds: Folds,
    *,
    classes: int,
    penalties: Sequence[float],
    seconds: float,
    seed: int,
    clock: Clock = time.monotonic,
) -> tuple[list[Candidate], list[str]]:
    """Fit logistic regression to the features in every fold: a candidate for each penalty that there was time for.

    Args:
        samples: all samples.
        folds: which of them to fit to and to predict.
        classes: number of classes.
        penalties: see `fit_linear`.
        seconds: for all penalties together; no penalty after the first is tried that would probably exceed them.
        seed: of the draw of samples where they have many features.
        clock: returns a time in seconds.

    Returns:
        The candidates, and notes on what is missing.
    """
    started = clock()
    found, notes = list[Candidate](), list[str]()
    for position, penalty in enumerate(penalties):
        spent = clock() - started
        if position and spent * (position + 1) / position > seconds:
            notes.append(f"{LINEAR}, penalty {penalty:g}: not tried, because its time was used up")
            break

        def train(fold: Fold, checkpoints: Sequence[int], seconds: float, *, penalty: float = penalty) -> Trajectory:
            def predict(_: int) -> NDArray[np.float64]:
                features, labels = samples.features[fold.training], samples.labels[fold.training]
                model = fit_linear(features, labels, classes=classes, penalty=penalty, seed=seed, most_values=LINEAR_VALUES)
                return model.scores(samples.features[fold.held_out])

            return follow(checkpoints, predict, seconds=seconds, clock=clock)

        name = f"{LINEAR}, penalty {penalty:g}"
        own, remarks = _in_folds(
            name, "linear", train, len(samples), folds, checkpoints=[ITERATIONS], seconds=seconds, clock=clock
        )
        found, notes = found + [replace(each, penalty=penalty) for each in own], notes + remarks
    return found, notes


def _in_folds(
    name: str,
    kind: Kind,
    train: Callable[[Fold, Sequence[int], float], Trajectory],
    samples: int,
    folds: Folds,
    *,
    checkpoints: Sequence[int],
    seconds: float,
    clock: Clock,
) -> tuple[list[Candidate], list[str]]:
    """Train in every fold to the checkpoints that the folds before reached, and join what they predict."""
    started = clock()
    found: list[Trajectory] = []
    notes: list[str] = []
    for position, fold in enumerate(folds.folds):
        left = seconds - (clock() - started)
        trained = train(fold, checkpoints, left / (len(folds.folds) - position))
        if trained.note is not None:
            notes.append(f"{name}, fold {position + 1} of {len(folds.folds)}: {trained.note}")
        found.append(trained)
        checkpoints = [steps for steps in checkpoints if steps in trained.logits]
        if not checkpoints:
            break
    candidates = [
        Candidate(
            name,
            kind,
            steps,
            _pooled(samples, folds, [trained.logits[steps] for trained in found]),
            sum(trained.seconds[steps] for trained in found),
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
