"""Confidence intervals of estimated proportions. numpy and scipy only.

The interval is that of Wilson (1927) for an effective number of points n = p (1 - p) / s^2 (Korn and Graubard 1998), which
Franco et al. (2019) recommend for small proportions from surveys, together with a better estimate of n than the sample's
own: of a rare class, what decides is often a few points with large weights, and a sample that has none of them has a small
s, too. `pipeline.assessment.estimators` computes that n. Where points are many, the interval is p -+ z s, as in Olofsson et
al. (2014).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

#: Probability that an interval is meant to cover the figure of the entire frame.
COVERAGE = 0.95


class Interval(NamedTuple):
    """Bounds of intervals; NaN where there is no estimate."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]


def wilson(proportion: ArrayLike, points: ArrayLike, *, coverage: float = COVERAGE) -> Interval:
    """Return Wilson's score intervals of proportions; NaN where the proportion is.

    Args:
        proportion: any shape.
        points: effective number of points, same shape; infinite for a proportion that is known.
        coverage: of the intervals.

    >>> found = wilson([0.9, 1.0, 0.25], [400, 20, np.inf])
    >>> found.low.round(3).tolist(), found.high.round(3).tolist()
    ([0.867, 0.839, 0.25], [0.926, 1.0, 0.25])
    """
    p, n = np.broadcast_arrays(np.asarray(proportion, np.float64), np.asarray(points, np.float64))
    z = float(norm.ppf((1 + coverage) / 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = z**2 / n  # of the points that shrink the interval towards a half
    spread = z / (1 + share) * np.sqrt(p * (1 - p) / n + share / (4 * n))
    centre = (p + share / 2) / (1 + share)
    # Rounding must not leave out the estimate, at which an interval may end.
    return Interval(np.clip(centre - spread, 0, p), np.clip(centre + spread, p, 1))
