"""Confidence intervals of estimated proportions. numpy and scipy only.

The rule, for a proportion p with standard error s (Brown, Cai and DasGupta 2001; effective sample sizes as in Korn and
Graubard 1998), where n = p (1 - p) / s^2 is the effective number of points:

- p is 0 or 1, so that s is 0 and says nothing: the exact interval of Clopper and Pearson (1934), for as many points as the
  figure rests on (Kish's effective number where their weights differ);
- fewer than `FEWEST` points are on one side, n p or n (1 - p): the interval of Wilson (1927), which keeps its coverage where
  the normal one is too narrow, up to far larger samples than is often said;
- otherwise the normal interval, p -+ z s, as in Olofsson et al. (2014), cut off at 0 and 1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm

#: Probability that an interval is meant to cover the figure of the entire frame.
COVERAGE = 0.95
#: Effective number of points on one side below which the normal interval is not used.
FEWEST = 50
IntervalName = Literal["exact", "Wilson", "normal", "none"]
_NAMES: tuple[IntervalName, ...] = ("none", "normal", "Wilson", "exact")


class Interval(NamedTuple):
    """Intervals of proportions, and the kind of each as a position in `_NAMES`; see `kind`."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    kinds: NDArray[np.int64]

    def kind(self, *index: int) -> IntervalName:
        """The kind of one of the intervals."""
        return _NAMES[int(self.kinds[index])]


def interval(proportion: ArrayLike, standard_error: ArrayLike, points: ArrayLike, *, coverage: float = COVERAGE) -> Interval:
    """Return the intervals of proportions by the module's rule; NaN where the proportion is.

    Args:
        proportion: any shape.
        standard_error: same shape.
        points: effective number of points that each figure rests on, same shape.
        coverage: of the intervals.

    >>> found = interval([0.9, 0.9, 1.0], [0.01, 0.06, 0.0], [900, 25, 30])
    >>> [found.kind(i) for i in range(3)], found.low.round(3).tolist(), found.high.round(3).tolist()
    (['normal', 'Wilson', 'exact'], [0.88, 0.725, 0.884], [0.92, 0.968, 1.0])
    """
    p, s, n = np.broadcast_arrays(*(np.asarray(each, np.float64) for each in (proportion, standard_error, points)))
    z = float(norm.ppf((1 + coverage) / 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = np.maximum(p * (1 - p) / s**2, 1.0)
        is_edge = (p <= 0) | (p >= 1)
        is_small = effective * np.minimum(p, 1 - p) < FEWEST
        low, high = np.clip(p - z * s, 0, 1), np.clip(p + z * s, 0, 1)
        wilson = _wilson(p, effective, z)
        exact = clopper_pearson(p * n, n, coverage=coverage)
    kinds = np.where(np.isnan(p), 0, np.where(is_edge, 3, np.where(is_small & (s > 0), 2, 1)))
    chosen = [
        np.choose(kinds, [np.full(p.shape, np.nan), normal, narrow, certain])
        for normal, narrow, certain in zip((low, high), wilson, exact, strict=True)
    ]
    return Interval(chosen[0], chosen[1], kinds)


def _wilson(p: NDArray[np.float64], n: NDArray[np.float64], z: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's score interval for n points, of which a share p is right."""
    spread = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    return centre - spread, centre + spread


def clopper_pearson(
    right: ArrayLike, points: ArrayLike, *, coverage: float = COVERAGE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the exact binomial interval for `right` of `points`; neither needs to be a whole number.

    >>> [round(float(bound), 4) for bound in clopper_pearson(30, 30)]
    [0.8843, 1.0]
    """
    x, n = np.asarray(right, np.float64), np.asarray(points, np.float64)
    tail = (1 - coverage) / 2
    low = np.where(x <= 0, 0.0, beta.ppf(tail, np.maximum(x, 1e-12), n - x + 1))
    high = np.where(x >= n, 1.0, beta.ppf(1 - tail, x + 1, np.maximum(n - x, 1e-12)))
    return np.asarray(low), np.asarray(high)
