"""Multinomial logistic regression for classes: training by scikit-learn, and scores.

A model is kept as arrays, never pickled. Only training needs scikit-learn, which is imported then: that takes a second.

Legend for shapes: n samples, F features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibf.errors import InputError
from pipeline.classifiers.blocks import for_each_block

#: Steps of the optimizer at most.
ITERATIONS = 100
#: Values of the features to which a model is fitted, at most: samples are thinned to them.
MOST_VALUES = 4_000_000
#: Score of a class without samples: low enough that it is never predicted at any temperature.
NEVER = -1000.0


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted model: the score of a class is its intercept plus the sum of features times coefficients."""

    coefficients: NDArray[np.float64]  #: (K, F)
    intercepts: NDArray[np.float64]  #: (K,)
    fill: NDArray[np.float64]  #: takes the place of missing features (F,)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], *, classes: int, features: int) -> LinearClassifier:
        """Read a model from what `weights` returned.

        Raises:
            InputError: other names, shapes or types than expected, or values that are not finite.
        """
        shapes = {"coefficients": (classes, features), "intercepts": (classes,), "fill": (features,)}
        found = {name: tuple(weights[name].shape) for name in weights}
        if found != shapes:
            raise InputError(f"the logistic regression has arrays {found}, expected {shapes}; train again.")
        arrays = {name: weights[name].numpy() for name in shapes}
        for name, values in arrays.items():
            if values.dtype != np.float64 or not np.isfinite(values).all():
                raise InputError(f"the logistic regression has {name} that are not finite float64 values; train again.")
        return cls(**arrays)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The arrays of the model by name."""
        return {name: torch.from_numpy(values) for name, values in vars(self).items()}

    def scores(self, features: NDArray[np.float32], *, threads: int | None = None) -> NDArray[np.float64]:
        """Compute the scores (n, K) of features (n, F), whose softmax are the probabilities.

        NaN is a missing feature. The scores of a row depend on nothing but its features: they are summed in the order of the
        features, which a matrix product would not promise.

        Args:
            features: (n, F).
            threads: by default, as many as there are cores.
        """
        if features.ndim != 2 or features.shape[1] != len(self.fill):
            raise ValueError(f"features of shape {features.shape}, expected (n, {len(self.fill)})")
        found = np.repeat(self.intercepts[:, None], len(features), axis=1)

        def compute(block: slice) -> None:
            total = found[:, block]
            for own, value, coefficients in zip(features[block].T, self.fill, self.coefficients.T, strict=True):
                known = np.where(np.isnan(own), value, own.astype(np.float64))
                total += coefficients[:, None] * known

        for_each_block(len(features), compute, threads=threads)
        return found.T


def fit_linear(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    classes: int,
    weights: NDArray[np.float64] | None = None,
    penalty: float,
    seed: int = 0,
    most_values: int = MOST_VALUES,
) -> LinearClassifier:
    """Fit multinomial logistic regression to all classes of a scene.

    Minimizes the mean cross-entropy plus penalty / 2 times the sum of the squared coefficients, of features that are scaled
    to a deviation of 1. Missing features take the median of the others. A class without samples is never predicted.

    Args:
        features: (n, F); NaN where missing.
        labels: class positions (n,), of two classes at least.
        classes: number of classes, of which some may have no samples.
        weights: of the samples (n,), with a mean of 1.
        penalty: above 0.
        seed: of the draw of samples.
        most_values: of features that have more, some samples are drawn.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    most = max(2, most_values // features.shape[1])
    if len(features) > most:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(features))[:most])
        features, labels = features[chosen], labels[chosen]
        weights = None if weights is None else weights[chosen]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a feature that is missing everywhere has no median
        fill = np.nan_to_num(np.nanmedian(features, axis=0).astype(np.float64))
    known = np.where(np.isnan(features), fill, features.astype(np.float64))
    center, scale = known.mean(axis=0), known.std(axis=0)
    scale[scale == 0] = 1
    model = LogisticRegression(C=1 / (penalty * len(labels)), max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fit that is stopped early is only more strongly regularized
        model.fit((known - center) / scale, labels, sample_weight=weights)
    present = model.classes_
    coefficients, intercepts = np.zeros((classes, features.shape[1])), np.full(classes, NEVER)
    found, constant = model.coef_, model.intercept_
    if len(present) == 2:  # of two classes, scikit-learn models the second against the first
        found, constant = np.concatenate([-found / 2, found / 2]), np.concatenate([-constant / 2, constant / 2])
    coefficients[present] = found / scale
    intercepts[present] = constant - (found / scale) @ center
    return LinearClassifier(coefficients, intercepts, fill)
