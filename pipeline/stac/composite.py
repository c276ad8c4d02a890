"""Composites: one value a pixel from the valid observations of several dates.

Every value is a function of the observations at its own pixel alone, so that a window equals the same part of the whole.

Legend for shapes: D dates, B bands, and y, x of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

Kind = Literal["first", "median", "mean", "min", "max", "medoid", "percentile"]


@dataclass(frozen=True)
class Composite:
    """How the dates of a pixel are combined; of a median, min, max or percentile each band by itself."""

    kind: Kind
    percentile: float | None = None  #: 0 to 100, of kind `percentile`

    def __str__(self) -> str:
        return self.kind if self.percentile is None else f"{self.kind} {self.percentile:g}"

    @property
    def keeps_dtype(self) -> bool:
        """Whether every value is one that was observed."""
        return self.kind in ("first", "min", "max", "medoid")

    def combine(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Combine dates, in their order.

        Args:
            values: (D, B, y, x).
            valid: (D, y, x).

        Returns:
            Values (B, y, x), of the same dtype or float32, without meaning where no date is valid; and where one is (y, x).
        """
        there = np.asarray(valid.any(axis=0))
        if self.kind in ("first", "medoid"):
            chosen = valid.argmax(axis=0) if self.kind == "first" else medoid(values, valid)
            return np.take_along_axis(values, chosen[None, None], axis=0)[0], there
        if self.kind == "mean":
            total = np.where(valid[:, None], values, 0).sum(axis=0, dtype=np.float64)
            return (total / np.maximum(valid.sum(axis=0), 1)).astype(np.float32), there
        if self.kind in ("min", "max"):
            limits = np.finfo(values.dtype) if values.dtype.kind == "f" else np.iinfo(values.dtype)
            if self.kind == "min":
                return np.where(valid[:, None], values, limits.max).min(axis=0), there
            return np.where(valid[:, None], values, limits.min).max(axis=0), there
        return percentile(values, valid, 50.0 if self.percentile is None else self.percentile), there


def percentile(values: NDArray[Any], valid: NDArray[np.bool_], q: float) -> NDArray[np.float32]:
    """The percentile (B, y, x) of the valid dates of each pixel, between two dates in proportion, as numpy has it.

    `numpy.nanpercentile` gives the same, but visits pixels one by one.

    Args:
        values: (D, B, y, x).
        valid: (D, y, x).
        q: 0 to 100.
    """
    # Integers of up to 16 bits and float32 alone are stored, so float32 holds all of them.
    ordered = np.where(valid[:, None], values.astype(np.float32, copy=False), np.float32(np.inf))
    ordered.sort(axis=0)
    position = q / 100 * np.maximum(valid.sum(axis=0) - 1, 0)
    below = np.floor(position).astype(np.intp)
    above = np.ceil(position).astype(np.intp)
    low, high = (np.take_along_axis(ordered, each[None, None], axis=0)[0].astype(np.float64) for each in (below, above))
    with np.errstate(invalid="ignore"):  # where no date is valid
        return np.asarray(low + (position - below) * (high - low), np.float32)


def medoid(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The date (y, x) whose bands are nearest to those of all other valid dates, by the sum of Euclidean distances.

    Of several such dates the first. Flood, "Seasonal composite Landsat TM/ETM+ images using the medoid (a
    multi-dimensional median)", Remote Sensing 5, 2013.

    Args:
        values: (D, B, y, x).
        valid: (D, y, x).
    """
    dates = len(values)
    distances = np.zeros(valid.shape)
    observed = values.astype(np.float64)
    for first in range(dates):
        for second in range(first + 1, dates):
            distance = np.sqrt(((observed[first] - observed[second]) ** 2).sum(axis=0))
            distances[first] += np.where(valid[second], distance, 0)
            distances[second] += np.where(valid[first], distance, 0)
    return np.asarray(np.where(valid, distances, np.inf).argmin(axis=0))


def dilated(unclear: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Extend a mask (y, x) by a distance of up to so many pixels in every direction."""
    if pixels == 0 or not unclear.any():
        return unclear
    offsets = np.arange(-pixels, pixels + 1)
    disc = offsets[:, None] ** 2 + offsets[None] ** 2 <= pixels**2
    return np.asarray(binary_dilation(unclear, structure=disc))
