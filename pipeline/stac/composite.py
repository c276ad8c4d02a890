"""Composites: one value a pixel from the valid observations of several dates.

Every value is a function of the observations at its own pixel alone, so that a window equals the same part of the whole.

Legend for shapes: D dates, B bands, and y, x of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import Window

#: Dtype of the number of clear dates of a pixel.
COUNTS = np.dtype(np.uint16)
#: Maximum bytes of all dates of a part of a window, which are in memory at once; and of a few of its rows, which are
#: combined at once, for which copies of at most so many times as many bytes are made, some of them of 64-bit numbers.
DATES_BYTES, COMBINED_BYTES, COMBINED_COPIES = 32 << 20, 1 << 20, 24
#: Maximum bytes for combining dates, besides the result.
WORKING_BYTES = DATES_BYTES + COMBINED_COPIES * COMBINED_BYTES
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


def combine_in_parts(
    composite: Composite,
    dates: Sequence[Date],
    read: Callable[[Date, Window], tuple[NDArray[Any], NDArray[np.bool_]]],
    window: Window,
    *,
    bands: int,
    observed: np.dtype[Any],
    dtype: np.dtype[Any],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Combine the dates of a window in parts, which are smaller the more dates there are.

    Args:
        composite: how.
        dates: in order.
        read: returns values (B, y, x) and validity (y, x) of a date.
        window: to read.
        bands: B.
        observed: dtype that holds the values of a date.
        dtype: of the result.

    Returns:
        Values (B, y, x), without meaning where no date is valid; and the number of valid dates (y, x).
    """
    if not dates:
        shape = (window.height, window.width)
        return np.zeros((bands, *shape), dtype), np.zeros(shape, bool)
    if len(dates) == 1:
        only, there = read(dates[0], window)
        return only.astype(dtype, copy=False), there
    values = np.empty((bands, window.height, window.width), dtype)
    counts = np.empty((window.height, window.width), COUNTS)
    pixel = pixel_bytes(len(dates), bands, observed)
    for part in parts(window, pixel):
        of_dates = np.empty((len(dates), bands, part.height, part.width), observed)
        clear = np.empty((len(dates), part.height, part.width), bool)
        for at, date in enumerate(dates):
            of_dates[at], clear[at] = read(date, part)
        top, left = part.y - window.y, part.x - window.x
        for rows in _runs(part.height, COMBINED_BYTES // (pixel * part.width)):
            combined, _ = composite.combine(of_dates[:, :, rows], clear[:, rows])
            values[:, top + rows.start : top + rows.stop, left : left + part.width] = combined
        counts[top : top + part.height, left : left + part.width] = clear.sum(axis=0)
    return values, counts


def pixel_bytes(dates: int, bands: int, dtype: np.dtype[Any]) -> int:
    """Bytes of the values and the validity of all dates of a pixel."""
    return dates * (bands * dtype.itemsize + 1)


def parts(window: Window, pixel: int) -> Iterator[Window]:
    """Halve a window along its longer side until no part has more than `DATES_BYTES`; `pixel`: bytes of one pixel.

    Halves of a square shard are blocks of its files or nest in them. Strips of all columns would cut more blocks, each of
    which is decoded for every part that it is in.
    """
    if window.height * window.width * pixel <= DATES_BYTES or window.height == window.width == 1:
        yield window
        return
    if window.height > window.width:
        half = -(-window.height // 2)
        first = replace(window, height=half)
        second = replace(window, y=window.y + half, height=window.height - half)
    else:
        half = -(-window.width // 2)
        first = replace(window, width=half)
        second = replace(window, x=window.x + half, width=window.width - half)
    yield from parts(first, pixel)
    yield from parts(second, pixel)


def _runs(height: int, rows: int) -> Iterator[slice]:
    """Slices of so many rows, at least one, that cover a height."""
    rows = max(1, rows)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


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
