"""Composites: one value a pixel from the valid observations of several dates.

Every value is a function of the observations at its own pixel alone, so that a window equals the same part of the whole.

Legend for shapes: D dates, B bands, and y, x of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import Window

#: Dtype of the number of clear dates of a pixel.
COUNTS = np.dtype(np.uint16)
#: What a date, and an item of it, is read from.
Date = TypeVar("Date")
Item = TypeVar("Item")
Kind = Literal["first", "median", "mean", "min", "max", "medoid", "percentile"]


class Observed(NamedTuple):
    """A window of a source: values (B, y, x), where there are any (y, x), and how many clear dates each period has.

    The counts are (period, y, x), with one plane for a composite without periods, and None for a source that is none.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    counts: NDArray[Any] | None


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


def mosaic(
    items: Sequence[Item], read: Callable[[Item, Window], tuple[NDArray[Any], NDArray[np.bool_]]], window: Window
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values (B, y, x) and validity (y, x) of one date, per pixel from the first item with data in all bands."""
    values, valid = read(items[0], window)
    for item in items[1:]:
        if valid.all():
            break
        others, there = read(item, window)
        new = there & ~valid
        values[:, new] = others[:, new]
        valid = valid | there
    return values, valid


def combine_in_strips(
    composite: Composite,
    dates: Sequence[Date],
    read: Callable[[Date, Window], tuple[NDArray[Any], NDArray[np.bool_]]],
    window: Window,
    *,
    bands: int,
    dtype: np.dtype[Any],
    strip_bytes: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Combine the dates of a window in strips, which are lower the more dates there are.

    Args:
        composite: how.
        dates: in order.
        read: returns values (B, y, x) and validity (y, x) of a date.
        window: to read.
        bands: B.
        dtype: of the result.
        strip_bytes: of the values of all dates of a strip, which are in memory at once.

    Returns:
        Values (B, y, x), without meaning where no date is valid; and the number of valid dates (y, x).
    """
    if not dates:
        shape = (window.height, window.width)
        return np.zeros((bands, *shape), dtype), np.zeros(shape, bool)
    if len(dates) == 1:
        return read(dates[0], window)
    values = np.empty((bands, window.height, window.width), dtype)
    counts = np.empty((window.height, window.width), COUNTS)
    height = max(1, strip_bytes // (len(dates) * bands * window.width * dtype.itemsize))
    for top in range(0, window.height, height):
        rows = min(height, window.height - top)
        strip = Window(window.y + top, window.x, rows, window.width)
        observed = np.empty((len(dates), bands, rows, window.width), dtype)
        clear = np.empty((len(dates), rows, window.width), bool)
        for at, date in enumerate(dates):
            observed[at], clear[at] = read(date, strip)
        values[:, top : top + rows], _ = composite.combine(observed, clear)
        counts[top : top + rows] = clear.sum(axis=0)
    return values, counts


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
