"""SplitMix64 (Steele, Lea and Flood 2014): hash positions to numbers that do not depend on caller or order. numpy only.

`numpy.random.Philox` is counter-based too, but draws consecutive values only, so a window needs a generator per row. Per
pixel that takes 2 times as long in windows of 512 x 512, 18 times in 64 x 64, and 780 times in a column of single pixels
(benchmarks/position_hash.py). It would also change the pixels of every random split and synthetic scene.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Increment of the state: an odd number near 2**64 divided by the golden ratio.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser: every bit of a value affects every bit of the result, and no two values give the same result."""
    value = (value ^ (value >> np.uint64(30))) * _FACTORS[0]
    value = (value ^ (value >> np.uint64(27))) * _FACTORS[1]
    return value ^ (value >> np.uint64(31))
