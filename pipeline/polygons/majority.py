"""Majority filter of class ids. Numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.polygons import NODATA


def majority(classes: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Give each pixel the most frequent class of the `side` x `side` pixels around it; without their margin of side // 2.

    Pixels without data do not count, and stay without. Of several classes that are equally frequent, the pixel's own wins if
    it is among them, otherwise the one with the lowest id.

    >>> majority(np.array([[1, 1, 2], [1, 2, 2], [1, 3, 3]], np.uint8), 3)
    array([[1]], dtype=uint8)
    """
    reach = side // 2
    inner = (slice(reach, classes.shape[0] - reach), slice(reach, classes.shape[1] - reach))
    own = classes[inner]
    found, most = np.full(own.shape, NODATA), np.zeros(own.shape, np.int32)
    for number in np.unique(classes[classes != NODATA]):
        # Doubled, so that a pixel's own class wins a tie and no more than that.
        votes = 2 * _box_sum(classes == number, side) + (own == number)
        better = votes > most
        found[better], most[better] = number, votes[better]
    found[own == NODATA] = NODATA
    return found


def _box_sum(mask: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """Number of true pixels in every box of a mask."""
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.int32), axis=1, out=total[1:, 1:])
    return np.asarray(total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side])
