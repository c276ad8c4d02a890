"""SplitMix64 (Steele, Lea and Flood 2014): numbers from places, the same whoever asks, in whatever order. numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: What a state is stepped by: an odd number near 2**64 over the golden ratio.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser: every bit of a value decides on every bit of the result, and no two values have the same one."""
    value = (value ^ (value >> np.uint64(30))) * _FACTORS[0]
    value = (value ^ (value >> np.uint64(27))) * _FACTORS[1]
    return value ^ (value >> np.uint64(31))
