"""Samples of trials without stores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from jobs.trials.folds import Folds, make_folds
from jobs.trials.samples import TrialSamples
from pipeline.store.template import StoredSource

PATCH = 5
NAMES = ("water", "forest")


@pytest.fixture(scope="session")
def samples() -> TrialSamples:
    """90 samples of two classes that the first source's values separate, on a line of blocks; the second is noise."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 90)
    bright = generator.random((90, 2, PATCH, PATCH), np.float32) * 0.6 + 0.4 * labels[:, None, None, None]
    noise = generator.random((90, 1, 2 * PATCH, 2 * PATCH), np.float32)
    column = np.sort(generator.choice(400, 90, replace=False))
    return TrialSamples(
        sources=(StoredSource("optical", 2, "exclude", 1), StoredSource("radar", 1, "exclude", 2)),
        patches=(bright.astype(np.float32), noise),
        features=bright.reshape(90, -1)[:, :4].astype(np.float32),
        labels=labels,
        store=np.zeros(90, np.int64),
        row=np.zeros(90, np.int64),
        column=column,
        is_validation=column > 300,
    )


@pytest.fixture(scope="session")
def folds(samples: TrialSamples) -> Folds:
    """Three folds of the samples."""
    return make_folds(samples.labels, samples.positions, samples.is_validation, classes=NAMES, patch=PATCH, side=16, seed=0)


@pytest.fixture
def ticking() -> Callable[[float], Callable[[], float]]:
    """Make clocks that advance by the given number of seconds with every look at them."""

    def clock(seconds: float) -> Callable[[], float]:
        now = iter(range(10**6))
        return lambda: next(now) * seconds

    return clock
