"""Fit a scaling to training pixels alone, in one pass: counts of values, which merge over shards by addition.

`pipeline.drift` counts those of a scene to be mapped alike.

Values of integer sources of up to 16 bits are counted each for itself, and quantiles are exact. Floats are counted in
bins of their leading bits, 8192 to an octave: a quantile is off by no more than 2**-14 of its value (and of
2**-126, where numbers lose their leading bits).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from mibf.scaling import BandScaling, Scaling

#: Limits are these quantiles of a band over the training pixels, as in the paper's released code.
LOW, HIGH = 0.005, 0.995
#: Trailing bits of a float32 that its bin leaves out: sign, 8 bits of exponent and 13 of fraction stay.
LEFT_OUT = 10
#: Bins that are kept together.
PAGE = 256


class BandCounts:
    """How often each value, or bin of values, of one band was seen; only pages of bins that hold any are kept."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact  #: integers of up to 16 bits
        self.pages: dict[int, NDArray[np.int64]] = {}  #: counts of the keys [PAGE * number, PAGE * (number + 1))
        self.least, self.most = np.inf, -np.inf

    def add(self, values: NDArray[Any]) -> None:
        """Count some finite values, of one dtype at all calls."""
        if not values.size:
            return
        if self.exact:
            least = 0 if values.dtype.kind == "u" else int(values.min())
            # Unsigned values are counted from 0: to shift them first would take longer.
            counts = np.bincount(values) if values.dtype.kind == "u" else np.bincount(values.astype(np.int64) - least)
            found = np.flatnonzero(counts)
            keys, counts = found + least, counts[found]
        else:
            keys, counts = np.unique(_keys(values), return_counts=True)
        numbers, starts = np.unique(keys // PAGE, return_index=True)
        for number, start, stop in zip(numbers.tolist(), starts, [*starts[1:], len(keys)], strict=True):
            self._page(number)[keys[start:stop] - number * PAGE] += counts[start:stop]
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    def _page(self, number: int) -> NDArray[np.int64]:
        if number not in self.pages:
            self.pages[number] = np.zeros(PAGE, np.int64)
        return self.pages[number]

    def merge(self, other: BandCounts) -> None:
        """Add what another has counted, of the same kind of values."""
        if self.exact != other.exact:
            raise ValueError("counts of integers and of floats do not add up")
        for number, counts in other.pages.items():
            self._page(number)[:] += counts
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    @property
    def pixels(self) -> int:
        """How many values were counted."""
        return sum(int(counts.sum()) for counts in self.pages.values())

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share of the pixels does not exceed; of floats, near it (see above)."""
        rank = max(1, int(np.ceil(share * self.pixels)))
        for number in sorted(self.pages):
            counts = self.pages[number]
            below = int(counts.sum())
            if rank <= below:
                key = number * PAGE + int(np.searchsorted(counts.cumsum(), rank))
                value = float(key) if self.exact else _middle(key)
                return min(max(value, self.least), self.most)
            rank -= below
        raise ValueError("no value was counted")

    def outside(self, low: float, high: float) -> int:
        """How many values lie below `low` or above `high`; of floats, not those in the bins of the two."""
        if self.exact:
            first, last = int(np.ceil(low)), int(np.floor(high))
        else:
            first, last = _keys(np.array([low, high])).tolist()
        total = 0
        for number, counts in self.pages.items():
            keys = PAGE * number + np.arange(PAGE)
            total += int(counts[(keys < first) | (keys > last)].sum())
        return total

    def limits(self) -> tuple[float, float]:
        """The quantiles `LOW` and `HIGH`; where they fall into one bin though values differ, the least and the most."""
        low, high = self.quantile(LOW), self.quantile(HIGH)
        return (low, high) if self.exact or low < high else (self.least, self.most)


class Sketch:
    """The counts of every band of one source."""

    def __init__(self, bands: int, dtype: np.dtype[Any]) -> None:
        exact = dtype.kind in "iu" and dtype.itemsize <= 2
        self.bands = [BandCounts(exact) for _ in range(bands)]

    def add_at(self, values: NDArray[Any], valid: NDArray[np.bool_], trained: NDArray[np.bool_]) -> None:
        """Count the values (bands, y, x) that are data (y, x), at training samples: a reference pixel (y, x) each."""
        scale = len(valid) // len(trained)
        if scale > 1:
            trained = trained.repeat(scale, axis=0).repeat(scale, axis=1)
        self.add(values, valid & trained)

    def add(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Count the values (bands, y, x) that are data (y, x)."""
        places = np.flatnonzero(valid)
        for band, found in zip(self.bands, values.reshape(len(values), -1), strict=True):
            band.add(found[places])

    def merge(self, other: Sketch) -> None:
        """Add what another has counted."""
        for band, found in zip(self.bands, other.bands, strict=True):
            band.merge(found)

    def scaling(self) -> BandScaling:
        """The limits, the 0.5 % and 99.5 % quantiles, and the fill value, the median, of every band."""
        low, high = np.array([band.limits() for band in self.bands], np.float32).T
        return BandScaling(low=low, high=high, fill=np.array([band.quantile(0.5) for band in self.bands], np.float32))


def merge(total: dict[str, Sketch], found: Mapping[str, Sketch]) -> None:
    """Add the counts of one scene or shard, by source, to a total."""
    for name, sketch in found.items():
        if name in total:
            total[name].merge(sketch)
        else:
            total[name] = sketch


def fit_scaling(sketches: Mapping[str, Sketch]) -> Scaling:
    """The scaling of every source.

    Raises:
        InputError: a source has no data at any training pixel.
    """
    for name, sketch in sketches.items():
        if not all(band.pixels for band in sketch.bands):
            raise InputError(f"source {name!r} has no data at any training pixel; check its extent, mask and nodata value.")
    return {name: sketch.scaling() for name, sketch in sketches.items()}


def _keys(values: NDArray[Any]) -> NDArray[np.int64]:
    """The bins of some finite values, in the order of the values.

    The bits of a float in IEEE 754 are in its order but for the sign: set it for positive numbers, turn all bits of
    negative ones.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> LEFT_OUT).astype(np.int64)


def _middle(key: int) -> float:
    """The value in the middle of a bin."""
    ordered = (key << LEFT_OUT) | (1 << (LEFT_OUT - 1))
    bits = ordered & 0x7FFFFFFF if ordered >> 31 else ~ordered & 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))
