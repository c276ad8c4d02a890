"""Logistic regression: scores against numpy, training against an independent optimum, and damaged arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from mibf.errors import InputError
from pipeline.classifiers.blocks import BLOCK
from pipeline.classifiers.linear import LinearClassifier, fit_linear

CLASSES, FEATURES = 3, 4


def drawn(samples: int, *, seed: int = 0, missing: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of different scales, of which the first ones depend on the class with errors, and the classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, samples)
    features = generator.normal(size=(samples, FEATURES)) + (labels[:, None] == np.arange(FEATURES))
    features = (features * [1.0, 10.0, 100.0, 0.1] + 5).astype(np.float32)
    features[generator.random(features.shape) < missing] = np.nan
    return features, labels


@pytest.fixture(scope="module")
def model() -> LinearClassifier:
    return fit_linear(*drawn(500, missing=0.05), classes=CLASSES, penalty=1e-2)


def test_scores_are_intercepts_and_weighted_features(model: LinearClassifier) -> None:
    features, _ = drawn(100, seed=1, missing=0.2)
    known = np.where(np.isnan(features), model.fill, features)
    np.testing.assert_allclose(model.scores(features), known @ model.coefficients.T + model.intercepts, rtol=1e-12)


def test_scores_have_the_same_bytes_in_any_batch_and_on_any_threads(model: LinearClassifier) -> None:
    features, _ = drawn(BLOCK + 77, seed=2, missing=0.1)
    whole = model.scores(features, threads=3)
    assert whole.tobytes() == model.scores(features, threads=1).tobytes()
    parts = [model.scores(part) for part in np.split(features, [1, 8, 4001])]
    assert whole.tobytes() == np.concatenate(parts).tobytes()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_fit_minimizes_the_penalized_cross_entropy(classes: int, penalty: float) -> None:
    """Against a general optimizer on standardized features; the penalty does not depend on the number of samples."""
    features, labels = drawn(400)
    features, labels = features[labels < classes], labels[labels < classes]
    weights = np.where(labels == 0, 2.0, 1.0)
    weights /= weights.mean()
    found = fit_linear(features, labels, classes=classes, penalty=penalty, weights=weights)
    center, scale = features.astype(np.float64).mean(axis=0), features.astype(np.float64).std(axis=0)
    standard = (features - center) / scale
    # Of two classes scikit-learn models the difference alone, whose square counts twice the sum of both halves' squares.
    factor = penalty * (2 if classes == 2 else 1)

    def loss(values: NDArray[np.float64]) -> float:
        own = values.reshape(classes, FEATURES + 1)
        likely = log_softmax(standard @ own[:, 1:].T + own[:, 0], axis=1)[np.arange(len(labels)), labels]
        return float(-np.average(likely, weights=weights) + factor / 2 * (own[:, 1:] ** 2).sum())

    best = minimize(loss, np.zeros(classes * (FEATURES + 1)), tol=1e-10)
    expected = log_softmax(standard @ best.x.reshape(classes, -1)[:, 1:].T + best.x.reshape(classes, -1)[:, 0], axis=1)
    np.testing.assert_allclose(log_softmax(found.scores(features), axis=1), expected, atol=1e-2)


def test_class_without_samples_is_never_predicted() -> None:
    features, labels = drawn(300)
    found = fit_linear(features[labels != 1], labels[labels != 1], classes=CLASSES, penalty=1e-3)
    scores = found.scores(features) / 16  # the highest temperature
    assert (scores.argmax(axis=1) != 1).all()
    assert np.exp(log_softmax(scores, axis=1))[:, 1].max() < 1e-20


def test_feature_that_is_missing_or_constant_everywhere_does_no_harm() -> None:
    features, labels = drawn(300)
    features[:, 1], features[:, 2] = np.nan, 7.0
    found = fit_linear(features, labels, classes=CLASSES, penalty=1e-3)
    assert np.isfinite(found.scores(features)).all()
    assert (found.scores(features).argmax(axis=1) == labels).mean() > 0.4


def test_many_values_are_thinned_reproducibly() -> None:
    features, labels = drawn(2000)
    few = [fit_linear(features, labels, classes=CLASSES, penalty=1e-3, seed=s, most_values=800) for s in (0, 0, 1)]
    assert few[0].coefficients.tobytes() == few[1].coefficients.tobytes()
    assert few[0].coefficients.tobytes() != few[2].coefficients.tobytes()


def test_arrays_are_read_back_and_damaged_ones_refused(model: LinearClassifier) -> None:
    again = LinearClassifier.from_weights(model.weights, classes=CLASSES, features=FEATURES)
    assert again.coefficients.tobytes() == model.coefficients.tobytes()
    bad = {
        "shape": model.weights | {"intercepts": torch.zeros(CLASSES + 1, dtype=torch.float64)},
        "names": {"coefficients": model.weights["coefficients"]},
        "infinite": model.weights | {"fill": torch.full((FEATURES,), torch.inf, dtype=torch.float64)},
        "type": model.weights | {"fill": torch.zeros(FEATURES)},
    }
    for weights in bad.values():
        with pytest.raises(InputError, match=r"the logistic regression has .*; train again\.$"):
            LinearClassifier.from_weights(weights, classes=CLASSES, features=FEATURES)
