"""The baseline learners: the majority class, multinomial logistic regression, random forest and gradient boosting.

All of scikit-learn, whose wheels bring their OpenMP. No fitted learner is stored. Missing features are NaN: the trees treat
them as values of their own, logistic regression takes the training median.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from dask.system import CPU_COUNT
from numpy.typing import NDArray

# Read when scikit-learn loads its OpenMP. Threads that wait busily made boosting several times slower where other processes
# use the cores: 10 rounds took 2.8 s instead of 1.1 s (20,000 samples, 51 features, 4 classes, 2 cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LearnerName = Literal["majority class", "logistic regression", "random forest", "gradient boosting"]
#: Which features a learner sees: the values of the pixel alone, or also means and deviations around it.
FeatureSet = Literal["values", "neighborhood"]
#: How classes are weighted: as they occur, or inversely to their frequency.
Weights = Literal["natural", "balanced"]
TREES, ROUNDS, ITERATIONS = 100, 100, 100
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

    def __init__(self, variant: Variant, features: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int) -> None:
        """Fit a learner to features (n, F) and class positions (n,)."""
        # A source may have no data on any of the samples. Boosting refuses such features, and no learner can use them.
        self._known = np.isfinite(features).any(axis=0)
        self._forest = variant.learner == "random forest"
        self._model = _make(variant, seed=seed % 2**32)
        with warnings.catch_warnings():
            # A fit that stops early is a more regularized one, and its metrics show what it is worth.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(features[:, self._known], labels)
        if self._forest:  # adds up its trees in the order in which its threads end; one thread gives the same sum every time
            self._model.set_params(n_jobs=1)

    def probabilities(self, features: NDArray[np.float32], *, classes: int) -> NDArray[np.float64]:
        """Return the probabilities (n, classes) of features (n, F); 0 for classes without training samples."""
        parts = np.split(features[:, self._known], range(PART, len(features), PART))
        if self._forest:
            with ThreadPoolExecutor(CPU_COUNT) as pool:
                found = list(pool.map(self._model.predict_proba, parts))
        else:
            found = [self._model.predict_proba(part) for part in parts]
        result = np.zeros((len(features), classes))
        result[:, self._model.classes_] = np.concatenate(found)
        return result


def _make(variant: Variant, *, seed: int) -> Any:
    """Create a scikit-learn classifier with its usual settings."""
    weight = "balanced" if variant.weights == "balanced" else None
    makers: dict[LearnerName, Callable[[], Any]] = {
        "majority class": partial(DummyClassifier, strategy="prior"),
        "random forest": partial(RandomForestClassifier, TREES, class_weight=weight, n_jobs=CPU_COUNT, random_state=seed),
        # Early stopping would hold back samples at random, from the same blocks, and fails for a class with one sample.
        "gradient boosting": partial(
            HistGradientBoostingClassifier,
            max_iter=ROUNDS,
            early_stopping=False,
            class_weight=weight,
            random_state=seed,
        ),
        "logistic regression": lambda: make_pipeline(
            SimpleImputer(strategy="median"),
            StandardScaler(),
            LogisticRegression(max_iter=ITERATIONS, class_weight=weight),
        ),
    }
    return makers[variant.learner]()
