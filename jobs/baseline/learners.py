"""The baseline learners: the majority class, multinomial logistic regression, random forest and gradient boosting.

Boosting is that of `model.kind: boosting`, the others are scikit-learn's. No fitted learner is stored. Missing features are
NaN: the trees treat them as values of their own, logistic regression takes the training median.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from pipeline.classifiers.trees import LabelledFeatures, Trees, fit_trees
from pipeline.parallel.cpu_count import cpu_count

LearnerName = Literal["majority class", "logistic regression", "random forest", "gradient boosting"]
#: Returns a time in seconds.
Clock = Callable[[], float]
#: Which features a learner sees: the values of the pixel alone, or also means and deviations around it.
FeatureSet = Literal["values", "neighborhood"]
#: How classes are weighted: as they occur, or inversely to their frequency.
Weights = Literal["natural", "balanced"]
TREES, ITERATIONS = 100, 100
#: Trees and iterations after which the time is checked.
TREES_PER_PART, ITERATIONS_PER_PART = 10, 25
#: Of this many blocks of training samples, boosting holds back one to find the number of rounds; rounds without blocks.
HOLD_BACK, ROUNDS = 5, 50
#: Pixels that a learner classifies at a time.
PART = 4096


@dataclass(frozen=True)
class Variant:
    """A learner with its features and class weights; the majority class has neither."""

    learner: LearnerName
    features: FeatureSet | None = None
    weights: Weights | None = None

    def __str__(self) -> str:
        if self.features is None:
            return f"the {self.learner}"
        features = "pixel values" if self.features == "values" else "values with 7x7 means and deviations"
        return f"{self.learner} on {features}{' (balanced)' if self.weights == 'balanced' else ''}"


def variants() -> Iterator[Variant]:
    """Yield all variants, those first whose results say most: they remain if time is short."""
    yield Variant("majority class")
    sets: tuple[tuple[FeatureSet, Weights], ...] = (
        ("neighborhood", "natural"),
        ("values", "natural"),
        ("neighborhood", "balanced"),
        ("values", "balanced"),
    )
    learners: tuple[LearnerName, ...] = ("random forest", "gradient boosting", "logistic regression")
    for features, weights in sets:
        for learner in learners:
            yield Variant(learner, features, weights)


class FittedLearner:
    """A learner that was fitted to some samples."""

    complete: bool  #: whether there was time for all trees, rounds or iterations

    def __init__(
        self,
        variant: Variant,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        *,
        classes: int,
        seed: int,
        blocks: NDArray[np.int64] | None = None,
        seconds: float = math.inf,
        clock: Clock = time.monotonic,
    ) -> None:
        """Fit a learner to features (n, F) and class positions (n,).

        Args:
            variant: the learner.
            features: missing ones are NaN.
            labels: of two classes at least.
            classes: number of classes of the scene.
            seed: of the learner's draws.
            blocks: in which block each sample is (n,); None if not known.
            seconds: after which no further trees, rounds or iterations begin.
            clock: returns a time in seconds.
        """
        # A source may have no data on any of the samples, so that its features have no median.
        self._known = np.isfinite(features).any(axis=0)
        self._classes = classes
        weights = compute_sample_weight("balanced", labels) if variant.weights == "balanced" else None
        samples = LabelledFeatures(features[:, self._known], labels, weights)
        end = clock() + seconds
        self._model: Any
        if variant.learner == "gradient boosting":
            self._model, self.complete = _boosting(samples, blocks, classes=classes, seed=seed, end=end, clock=clock)
        elif variant.learner == "random forest":
            self._model, self.complete = _forest(samples, seed=seed % 2**32, end=end, clock=clock)
        elif variant.learner == "logistic regression":
            self._model, self.complete = _regression(samples, end=end, clock=clock)
        else:
            self._model, self.complete = DummyClassifier(strategy="prior").fit(samples.features, labels), True

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probabilities (n, classes) of features (n, F); 0 or next to 0 for classes without training samples."""
        features = features[:, self._known]
        if isinstance(self._model, Trees):
            return np.asarray(softmax(self._model.scores(features), axis=1))
        parts = np.split(features, range(PART, len(features), PART))
        if isinstance(self._model, RandomForestClassifier):
            with ThreadPoolExecutor(cpu_count()) as pool:
                found = list(pool.map(self._model.predict_proba, parts))
        else:
            found = [self._model.predict_proba(part) for part in parts]
        result = np.zeros((len(features), self._classes))
        result[:, self._model.classes_] = np.concatenate(found)
        return result


def _boosting(
    samples: LabelledFeatures, blocks: NDArray[np.int64] | None, *, classes: int, seed: int, end: float, clock: Clock
) -> tuple[Trees, bool]:
    """Fit boosted trees, in as many rounds as are best on blocks of the training samples that are held back at first.

    Like the other learners', with whether there was time for all of it.
    """
    rounds, complete = ROUNDS, True
    number, block = (0, None) if blocks is None else _numbered(blocks)
    if block is not None and number > 1:
        drawn = np.random.default_rng(seed).permutation(number)[: -(-number // HOLD_BACK)]
        held = np.isin(block, drawn)
        if held.mean() > 0.5:
            held = ~held
        fitted, stopping = _part(samples, ~held), _part(samples, held)
        now = clock()
        half = now + (end - now) / 2
        rounds = fit_trees(
            *fitted[:2],
            classes=classes,
            weights=fitted.weights,
            validation=stopping,
            seed=seed,
            seconds=half - now,
            clock=clock,
        ).rounds
        complete = clock() < half
    trees = fit_trees(
        *samples[:2], classes=classes, weights=samples.weights, rounds=rounds, seed=seed, seconds=end - clock(), clock=clock
    )
    return trees, complete and clock() < end


def _numbered(blocks: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Number of blocks with samples, and the position of each sample's block among them."""
    found, positions = np.unique(blocks, return_inverse=True)
    return len(found), positions


def _part(samples: LabelledFeatures, kept: NDArray[np.bool_]) -> LabelledFeatures:
    """Return some of the samples."""
    weights = None if samples.weights is None else samples.weights[kept]
    return LabelledFeatures(samples.features[kept], samples.labels[kept], weights)


def _forest(samples: LabelledFeatures, *, seed: int, end: float, clock: Clock) -> tuple[RandomForestClassifier, bool]:
    """Grow a forest in parts; it is the one that would be grown at once."""
    forest = RandomForestClassifier(warm_start=True, n_jobs=cpu_count(), random_state=seed)
    for trees in range(TREES_PER_PART, TREES + 1, TREES_PER_PART):
        if trees > TREES_PER_PART and clock() >= end:
            break
        forest.set_params(n_estimators=trees).fit(samples.features, samples.labels, sample_weight=samples.weights)
    # It adds up its trees in the order in which its threads end; one thread gives the same sum every time.
    return forest.set_params(n_jobs=1), len(forest.estimators_) == TREES


def _regression(samples: LabelledFeatures, *, end: float, clock: Clock) -> tuple[Any, bool]:
    """Fit logistic regression in parts, each of which begins where the last one ended."""
    prepare = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    features = prepare.fit_transform(samples.features)
    regression = LogisticRegression(max_iter=ITERATIONS_PER_PART, warm_start=True)
    iterations, converged = 0, False
    while iterations < ITERATIONS and not converged and (not iterations or clock() < end):
        with warnings.catch_warnings():
            # A fit that stops early is a more regularized one, and its metrics show what it is worth.
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(features, samples.labels, sample_weight=samples.weights)
        iterations += ITERATIONS_PER_PART
        converged = bool(regression.n_iter_.max() < ITERATIONS_PER_PART)
    return make_pipeline(prepare, regression), converged or iterations >= ITERATIONS
