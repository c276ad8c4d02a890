"""Pixels that have no observation in some periods.

Legend for shapes: P periods, B bands of each period, and y, x of a window. Bands are in the order of the periods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stac.periods import Gaps, Period


def close_gaps(values: NDArray[Any], counts: NDArray[Any], periods: Sequence[Period], gaps: Gaps) -> NDArray[np.bool_]:
    """Set or interpolate the values of periods without an observation, in place; return where (y, x) there is a value.

    Args:
        values: (P * B, y, x); float32 if they are interpolated.
        counts: the number of observations (P, y, x).
        periods: in order.
        gaps: `exclude`: a pixel has a value where all periods have one. `fill`: where one has; the others get 0 here, for
            readers know from the counts that it is no value. `interpolate`: likewise, but the others are interpolated.
    """
    clear = counts > 0
    if gaps == "exclude":
        return np.asarray(clear.all(axis=0))
    by_period = values.reshape(len(periods), -1, *values.shape[1:])
    if gaps == "fill":
        for own, there in zip(by_period, clear, strict=True):
            own[:, ~there] = 0
    else:
        _interpolate(by_period, clear, [period.middle for period in periods])
    return np.asarray(clear.any(axis=0))


def _interpolate(values: NDArray[Any], clear: NDArray[np.bool_], at: Sequence[float]) -> None:
    """Interpolate linearly in time where (P, y, x) periods are not clear, in place (P, B, y, x); the nearest at the ends."""
    days = np.asarray(at)
    after = np.full(clear.shape, len(at), np.int16)  # the next clear period of each pixel; none: the number of periods
    following = np.full(clear.shape[1:], len(at), np.int16)
    for position in reversed(range(len(at))):
        following[clear[position]] = position
        after[position] = following
    before = np.full(clear.shape[1:], -1, np.int16)
    for position, there in enumerate(clear):
        before[there] = position
        y, x = np.nonzero(~there & ((before >= 0) | (after[position] < len(at))))
        low, high = before[y, x].astype(np.intp), after[position, y, x].astype(np.intp)
        low, high = np.where(low < 0, high, low), np.where(high == len(at), low, high)
        apart = days[high] - days[low]
        share = np.where(apart > 0, days[position] - days[low], 0) / np.where(apart > 0, apart, 1)
        for band in range(values.shape[1]):
            first = values[low, band, y, x].astype(np.float64)
            values[position, band, y, x] = first + share * (values[high, band, y, x] - first)
