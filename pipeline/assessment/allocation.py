"""How many points a sample needs, and how they are allocated to its strata. numpy only.

The variance of the overall accuracy that a stratified sample of n points estimates is sum(W^2 S^2 / a) / n - sum(W S^2) / N
(Cochran 1977, equations 5.6 and 5.23), where W are the strata's shares of the frame's N pixels, a their shares of the points
and S^2 = U (1 - U), with U the expected user's accuracies. With Neyman's allocation this gives equation 13 of Olofsson et
al. (2014).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mibf.errors import InputError

Allocation = Literal["proportional", "equal", "neyman"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)
#: Expected accuracies are taken as at least and at most this: at 0 or 1, a stratum would get no points.
LOWEST, HIGHEST = 0.05, 0.95
#: The expected accuracy of a class of which nothing is known: that of the largest variance.
UNKNOWN = 0.5
_HALVINGS = 100


def point_shares(pixels: ArrayLike, accuracies: ArrayLike, allocation: Allocation) -> NDArray[np.float64]:
    """Return the strata's shares of the points (H,), before any minimum; none for strata without pixels.

    >>> point_shares([900, 100, 0], [0.9, 0.9, 0.9], "equal").tolist()
    [0.5, 0.5, 0.0]
    """
    size = np.asarray(pixels, np.float64)
    wanted = {
        "proportional": size,
        "equal": (size > 0).astype(np.float64),
        "neyman": size * np.sqrt(variances(accuracies)),
    }[allocation]
    return np.asarray(wanted / wanted.sum())


def variances(accuracies: ArrayLike) -> NDArray[np.float64]:
    """Expected variance within each stratum, U (1 - U), of bounded expected accuracies; NaN is `UNKNOWN`."""
    expected = np.asarray(accuracies, np.float64)
    bounded = np.clip(np.where(np.isnan(expected), UNKNOWN, expected), LOWEST, HIGHEST)
    return np.asarray(bounded * (1 - bounded))


def needed_points(pixels: ArrayLike, accuracies: ArrayLike, shares: NDArray[np.float64], *, standard_error: float) -> int:
    """Return the number of points with which the overall accuracy is expected to have a standard error.

    Olofsson et al. (2014), section 5.1.1, print 641 for a frame without the finite population correction:

    >>> weights, accuracies = [200_000, 150_000, 3_200_000, 6_450_000], [0.7, 0.6, 0.9, 0.95]
    >>> needed_points(weights, accuracies, point_shares(weights, accuracies, "neyman"), standard_error=0.01)
    641
    """
    size, within = np.asarray(pixels, np.float64), variances(accuracies)
    weights, there = size / size.sum(), size > 0
    between = (weights[there] ** 2 * within[there] / shares[there]).sum()
    return max(1, math.ceil(float(between / (standard_error**2 + (weights * within).sum() / size.sum()))))


def allocate(pixels: ArrayLike, shares: NDArray[np.float64], points: int, *, minimum: int) -> NDArray[np.int64]:
    """Allocate points to strata by their shares, with at least `minimum` of each stratum, or all of its pixels.

    What the minima take is taken from the other strata in proportion; fractions go to the largest remainders.

    Returns:
        Numbers of points (H,), which add up to `points`.

    Raises:
        InputError: the strata have fewer pixels than points, or their minima are more.

    >>> allocate([9000, 900, 5], np.array([0.9, 0.09, 0.01]), 100, minimum=20).tolist()
    [75, 20, 5]
    """
    size = np.asarray(pixels, np.int64)
    floor = np.minimum(size, minimum)
    if points > size.sum():
        raise InputError(f"a sample of {points:,} points is larger than its frame of {size.sum():,} pixels; draw fewer.")
    if floor.sum() > points:
        raise InputError(
            f"{points:,} points are too few for {minimum:,} in each of {np.count_nonzero(size)} strata, which take "
            f"{floor.sum():,}; draw more points (--n) or lower --minimum."
        )
    # The shares are scaled until what is between the minima and the pixels there are adds up to the points.
    low, high = 0.0, float((size / np.where(shares > 0, shares, np.inf)).max()) + 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * shares, floor, size).sum() < points else (low, middle)
    return _rounded(np.clip(high * shares, floor, size), points)


def _rounded(exact: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Round numbers that add up to a total, but for rounding errors, to whole ones that do: largest remainders up."""
    found = np.floor(exact + 1e-9).astype(np.int64)
    found[np.argsort(found - exact, kind="stable")[: total - found.sum()]] += 1
    return found
