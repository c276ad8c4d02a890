"""Gradient boosted trees for classes: training by LightGBM, and scores.

A model is kept as LightGBM's text, never pickled. Only training needs LightGBM, which is imported then: that takes seconds
and needs a system library.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.classifiers.blocks import for_each_block
from pipeline.classifiers.evaluation import evaluate
from pipeline.classifiers.model_text import ModelTextError, read_model
from pipeline.parallel.cpu_count import cpu_count

#: Boosting rounds at most, and rounds without a lower loss of the validation samples after which training stops.
ROUNDS, STOPPING_ROUNDS = 300, 25
#: The other settings. Few leaves and random halves of the features were better than scikit-learn's histogram boosting with
#: its defaults on five of seven scenes (docs/model_selection.md).
LEAVES, LEARNING_RATE = 15, 0.08
SETTINGS = {
    "objective": "multiclass",
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,  # else LightGBM measures whether it is faster, and its choice changes the sums
    "verbosity": -1,
}
#: Least number of samples in a leaf, and the share of all samples that it is of few.
LEAF_SAMPLES, FEWEST_LEAF_SAMPLES, LEAF_SHARE = 30, 3, 50
#: Values of the features from which training uses another thread. LightGBM shares torch's OpenMP runtime, whose threads wait
#: busily for each other: where other processes used the cores, ten rounds with 20,000 samples of 45 features took 2 to 28 s
#: on two threads and 0.6 s on one. `OMP_WAIT_POLICY` would have to be set before torch is imported, and slow torch.
VALUES_PER_THREAD = 5_000_000

# LightGBM keeps one number of threads for the process, which two trainings would change for each other.
_TRAINING = threading.Lock()


class LabelledFeatures(NamedTuple):
    """Samples: features (n, F), class positions (n,), and weights (n,) or None for equal ones."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None


class Trees:
    """A trained model."""

    text: str  #: LightGBM's text format
    classes: int
    features: int
    rounds: int

    def __init__(self, text: str) -> None:
        """Read a model; `from_text` names what is wrong with it."""
        self._model = read_model(text)
        self.text = text
        self.classes, self.features, self.rounds = self._model.classes, self._model.features, self._model.rounds

    @classmethod
    def from_text(
        cls, text: str, *, classes: int | None = None, features: int | None = None, name: str = "boosted trees"
    ) -> Trees:
        """Read a model from LightGBM's text.

        Args:
            text: of a model with the objective multiclass or binary.
            classes: the expected number, if any.
            features: the expected number, if any.
            name: what the text was read from, for messages.

        Raises:
            InputError: the text is no such model, is damaged, or has other numbers than expected.
        """
        try:
            found = cls(text)
        except ModelTextError as error:
            raise InputError(f"{name}: {error}; train again, or restore the file.") from error
        for what, expected, has in (("classes", classes, found.classes), ("features", features, found.features)):
            if expected is not None and has != expected:
                raise InputError(f"{name}: the boosted trees have {has} {what}, expected {expected}; train again.")
        return found

    def scores(self, features: NDArray[np.float32], *, threads: int | None = None) -> NDArray[np.float64]:
        """Compute the raw scores (n, classes) of features (n, F), whose softmax are the probabilities.

        NaN is a missing feature. The scores of a row depend on nothing but its features.

        Args:
            features: (n, F).
            threads: by default, as many as there are cores.
        """
        if features.ndim != 2 or features.shape[1] != self.features:
            raise ValueError(f"features of shape {features.shape}, expected (n, {self.features})")
        model = self._model
        found = np.zeros((self.classes if model.sigmoid is None else 1, len(features)))

        def compute(block: slice) -> None:
            evaluate(model, features[block].T, found[:, block])

        for_each_block(len(features), compute, threads=threads)
        if model.sigmoid is not None:
            found = np.concatenate([np.zeros_like(found), model.sigmoid * found])
        return found.T


def fit_trees(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    classes: int,
    weights: NDArray[np.float64] | None = None,
    validation: LabelledFeatures | None = None,
    rounds: int = ROUNDS,
    stopping_rounds: int = STOPPING_ROUNDS,
    leaves: int = LEAVES,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    threads: int | None = None,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Trees:
    """Train boosted trees for all classes of a scene.

    The result depends on the arguments alone, not on the number of threads, unless time runs out. A class without samples
    gets scores so low that it is never predicted.

    Args:
        features: (n, F); NaN where missing.
        labels: class positions (n,).
        classes: number of classes, of which some may have no samples.
        weights: of the samples (n,).
        validation: training stops if their loss has not fallen for `stopping_rounds`, and the rounds after the lowest loss
            are dropped. Samples of classes that have no training samples are ignored.
        rounds: at most.
        stopping_rounds: see `validation`.
        leaves: of a tree, at most.
        learning_rate: shrinkage of each tree.
        seed: of the draws of samples and features in each round.
        threads: by default, one for each `VALUES_PER_THREAD`, and at most as many as there are cores.
        seconds: no round begins after this time, except the first.
        clock: returns a time in seconds.

    Raises:
        InputError: LightGBM cannot be loaded.
    """
    if len(features) < 2 or classes < 2 or rounds < 1:
        raise ValueError("training needs two samples, two classes and a round")
    end = clock() + seconds
    params = SETTINGS | {
        "num_class": classes,
        "num_leaves": leaves,
        "learning_rate": learning_rate,
        "min_data_in_leaf": min(LEAF_SAMPLES, max(FEWEST_LEAF_SAMPLES, len(features) // LEAF_SHARE)),
        "seed": seed % 2**31,
        "num_threads": threads or min(cpu_count(), 1 + features.size // VALUES_PER_THREAD),
    }
    samples = LabelledFeatures(features, labels, weights)
    monitored = None if validation is None else _of_classes(validation, labels)
    text = _train(params, samples, monitored, rounds=rounds, stopping_rounds=stopping_rounds, in_time=lambda: clock() < end)
    # The settings after the trees hold the number of threads.
    return Trees(text[: text.index("\nparameters:\n")])


def _train(
    params: dict[str, Any],
    samples: LabelledFeatures,
    monitored: LabelledFeatures | None,
    *,
    rounds: int,
    stopping_rounds: int,
    in_time: Callable[[], bool],
) -> str:
    """Train, and return LightGBM's text of the best rounds, or of all without samples to monitor."""
    lightgbm = _lightgbm()
    with _TRAINING:
        training = lightgbm.Dataset(samples.features, samples.labels, weight=samples.weights, params=params)
        booster = lightgbm.Booster(params, training)
        if monitored is not None:
            features, labels, weights = monitored
            booster.add_valid(lightgbm.Dataset(features, labels, training, weight=weights, params=params), "validation")
        losses: list[float] = []
        best = 0
        while len(losses) < rounds and len(losses) - best <= stopping_rounds and (not losses or in_time()):
            finished = booster.update()  # no tree could be split further
            losses.append(booster.eval_valid()[0][2] if monitored is not None else -len(losses))
            best = int(np.argmin(losses))
            if finished:
                break
        return str(booster.model_to_string(num_iteration=best + 1))


def _of_classes(samples: LabelledFeatures, labels: NDArray[np.int64]) -> LabelledFeatures | None:
    """The samples of the classes that occur among some labels, if any."""
    kept = np.isin(samples.labels, labels)
    if not kept.any():
        return None
    weights = None if samples.weights is None else samples.weights[kept]
    return LabelledFeatures(samples.features[kept], samples.labels[kept], weights)


def _lightgbm() -> ModuleType:
    """Import LightGBM, after torch: on Linux it then shares torch's OpenMP runtime, instead of depending on the order.

    Raises:
        InputError: its OpenMP runtime is missing.
    """
    import torch  # noqa: F401  # loaded first, as said above

    try:
        import lightgbm
    except OSError as error:
        raise InputError(
            f"LightGBM cannot be loaded ({error}). It needs the OpenMP runtime of the system: `apt-get install libgomp1` "
            "(Debian, Ubuntu), `dnf install libgomp` (Fedora, Red Hat) or `brew install libomp` (macOS)."
        ) from error
    return lightgbm
