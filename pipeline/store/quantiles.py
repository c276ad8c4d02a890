"""Fit the normalization to training pixels only, in one pass: histograms of values, which merge over shards by addition.

`pipeline.maps.drift` builds the same histograms of a scene to be mapped.

Integer sources of up to 16 bits have one bin per value, and their quantiles are exact. Floats are binned by their leading
bits, 8192 bins per octave: a quantile is off by at most 2**-14 of its value (of 2**-126 for subnormal numbers, which lose
leading bits).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from mibf.normalization import BandScaling, Scaling

#: Limits are these quantiles of a band over the training pixels, as in the paper's released code.
LOW, HIGH = 0.005, 0.995
#: Trailing bits of a float32 that its bin ignores: sign, 8 exponent bits and 13 fraction bits remain.
LEFT_OUT = 10
#: Bins per page.
PAGE = 256


class BandHistogram:
    """Histogram of the values of one band, or of bins of values; only pages with counts are stored."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact  #: integers of up to 16 bits
        self.pages: dict[int, NDArray[np.int64]] = {}  #: counts of the keys [PAGE * number, PAGE * (number + 1))
        self.least, self.most = np.inf, -np.inf

    def add(self, values: NDArray[Any]) -> None:
        """Count finite values; all calls must pass the same dtype."""
        if not values.size:
            return
        if self.exact:
            least = 0 if values.dtype.kind == "u" else int(values.min())
            # Unsigned values are counted from 0: shifting them first would take longer.
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

    def merge(self, other: BandHistogram) -> None:
        """Add the counts of another histogram of the same kind of values."""
        if self.exact != other.exact:
            raise ValueError("cannot merge counts of integers with counts of floats")
        for number, counts in other.pages.items():
            self._page(number)[:] += counts
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    @property
    def pixels(self) -> int:
        """Number of values counted."""
        return sum(int(counts.sum()) for counts in self.pages.values())

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share of the pixels does not exceed; approximate for floats (see above)."""
        rank = max(1, int(np.ceil(share * self.pixels)))
        for number in sorted(self.pages):
            counts = self.pages[number]
            below = int(counts.sum())
            if rank <= below:
                key = number * PAGE + int(np.searchsorted(counts.cumsum(), rank))
                value = float(key) if self.exact else _middle(key)
                return min(max(value, self.least), self.most)
            rank -= below
        raise ValueError("no values were counted")

    def quantiles(self, shares: Sequence[float]) -> NDArray[np.float64]:
        """The `quantile` of every share; the exact minimum and maximum for 0 and 1."""
        numbers = sorted(self.pages)
        below = np.concatenate([self.pages[number] for number in numbers]).cumsum()
        keys = (np.array(numbers)[:, None] * PAGE + np.arange(PAGE)).ravel()
        ranks = np.maximum(1, np.ceil(np.array(shares) * below[-1]))
        found = keys[np.searchsorted(below, ranks)].tolist()
        values = np.clip([float(key) if self.exact else _middle(key) for key in found], self.least, self.most)
        ends = np.array(shares)
        return np.where(ends == 0, self.least, np.where(ends == 1, self.most, values))

    def outside(self, low: float, high: float) -> int:
        """Number of values below `low` or above `high`; for floats, without those in the bins of the two."""
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
        """The quantiles `LOW` and `HIGH`; where they coincide, the minimum and maximum.

        Integers and floats follow this one rule: a band is constant only if all its values are equal.
        """
        low, high = self.quantile(LOW), self.quantile(HIGH)
        return (low, high) if low < high else (self.least, self.most)


class QuantileSketch:
    """Histograms of all bands of one source."""

    def __init__(self, bands: int, dtype: np.dtype[Any]) -> None:
        exact = dtype.kind in "iu" and dtype.itemsize <= 2
        self.bands = [BandHistogram(exact) for _ in range(bands)]

    def add_at(self, values: NDArray[Any], valid: NDArray[np.bool_], trained: NDArray[np.bool_]) -> None:
        """Count the values (bands, y, x) that are valid at training samples, given on reference pixels (y, x).

        `valid` is (y, x), or (bands, y, x).
        """
        scale = valid.shape[-2] // len(trained)
        if scale > 1:
            trained = trained.repeat(scale, axis=0).repeat(scale, axis=1)
        self.add(values, valid & trained)

    def add(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Count the values (bands, y, x) that are valid, (y, x) or (bands, y, x)."""
        places = [np.flatnonzero(own) for own in (valid if valid.ndim == 3 else valid[None])]
        for number, (band, found) in enumerate(zip(self.bands, values.reshape(len(values), -1), strict=True)):
            band.add(found[places[number if valid.ndim == 3 else 0]])

    def merge(self, other: QuantileSketch) -> None:
        """Add the counts of another sketch."""
        for band, found in zip(self.bands, other.bands, strict=True):
            band.merge(found)

    def scaling(self) -> BandScaling:
        """The limits (0.5 % and 99.5 % quantiles) and the fill value (median) of every band.

        A band without values, of a period without observations, is constant: 0.
        """
        found = [(*band.limits(), band.quantile(0.5)) if band.pixels else (0.0, 0.0, 0.0) for band in self.bands]
        low, high, fill = np.array(found, np.float32).T
        return BandScaling(low=low, high=high, fill=fill)


def merge(total: dict[str, QuantileSketch], found: Mapping[str, QuantileSketch]) -> dict[str, QuantileSketch]:
    """Add the counts of one scene or shard, by source, to a total, and return it."""
    for name, sketch in found.items():
        if name in total:
            total[name].merge(sketch)
        else:
            total[name] = sketch
    return total


def fit_scaling(sketches: Mapping[str, QuantileSketch]) -> Scaling:
    """Fit the normalization of every source.

    Raises:
        InputError: a source has no data at any training pixel.
    """
    for name, sketch in sketches.items():
        if not any(band.pixels for band in sketch.bands):
            raise InputError(f"source {name!r} has no data at any training pixel; check its extent, mask and nodata value.")
    return {name: sketch.scaling() for name, sketch in sketches.items()}


def _keys(values: NDArray[Any]) -> NDArray[np.int64]:
    """The bins of finite values, in the order of the values.

    The bits of an IEEE 754 float sort like its value except for the sign: set the sign bit of positive numbers, invert all
    bits of negative ones.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> LEFT_OUT).astype(np.int64)


def _middle(key: int) -> float:
    """The value in the middle of a bin."""
    ordered = (key << LEFT_OUT) | (1 << (LEFT_OUT - 1))
    bits = ordered & 0x7FFFFFFF if ordered >> 31 else ~ordered & 0xFFFFFFFF
    return float(np.array(bits, np.uint32).view(np.float32))
