"""How far two co-registered sources lie apart, measured on their own pixels. numpy and scikit-image; no files.

Sensors of different kinds share edges, not brightness: a lake is dark to one and bright to another, and its
shore is where it is for both. So what is registered is the magnitude of the gradient, its root taken so that
a few bright roofs do not outweigh all else. Still, two sensors may share so little that the best match is chance; the
measure then says so, by how few windows agree, see `Shift.credible`.

Signs: (dy, dx) is how far the second source lies below and to the right of the first, in pixels of the reference grid. What
stands at (y, x) in the first stands at (y + dy, x + dx) in the second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.filters import gaussian
from skimage.registration import phase_cross_correlation

from pipeline.grid import Window

#: A window with a larger share of pixels without data in either source is left out.
MOST_INVALID = 0.2
#: Windows within this many pixels of the median agree with it.
AGREEMENT = 0.5
#: A shift is told to this fraction of a pixel.
UPSAMPLING = 10
#: Standard deviation in pixels of the smoothing that keeps noise from making edges.
SMOOTHING = 1.0
#: Pixels left off a window's rim, which smoothing and gradient see in part: four deviations and one.
RIM = 5
# `Shift.credible`
FEWEST_AGREEING = 3
LEAST_AGREEING = 0.6


@dataclass(frozen=True)
class Shift:
    """The median shift over windows, in pixels of the reference grid; NaN where no window could be measured."""

    dy: float  #: how far the second source lies below the first
    dx: float  #: how far it lies to the right
    windows: int  #: that could be measured
    agreeing: int  #: of these, within `AGREEMENT` of the median

    @property
    def credible(self) -> bool:
        """Whether it is a shift of the sources and not chance: 3 windows or more agree, and they are 60 % or more.

        Bands of one sensor agreed in 9 windows of 9 of a real scene, moved or not; unlike sensors (optical and radar,
        optical and elevation), noise and a mirrored scene in no more than a third. Two of three are not enough: of
        threes of windows of noise one in a hundred had two that agreed.
        """
        return self.agreeing >= max(FEWEST_AGREEING, LEAST_AGREEING * self.windows)

    @property
    def distance(self) -> float:
        """Its length in pixels."""
        return math.hypot(self.dy, self.dx)


def places(shape_yx: tuple[int, int], side: int = 256, count: int = 9) -> list[Window]:
    """Up to `count` windows of `side` pixels spread evenly over a grid, row by row; they do not overlap.

    A grid that is smaller than a window along an axis has windows of its own length there. For a credible shift
    choose a `side` that leaves room for three windows at least, better nine.
    """
    height, width = (min(side, size) for size in shape_yx)
    most_y, most_x = shape_yx[0] // height, shape_yx[1] // width
    rows = max(1, min(most_y, round(math.sqrt(count * most_y / most_x))))
    columns = max(1, min(most_x, count // rows))
    rows = max(1, min(most_y, count // columns))
    starts_y, starts_x = _starts(shape_yx[0], height, rows), _starts(shape_yx[1], width, columns)
    return [Window(y, x, height, width) for y in starts_y for x in starts_x]


def _starts(size: int, length: int, count: int) -> list[int]:
    """Where `count` windows begin along an axis: each in the middle of its own strip."""
    borders = [size * i // count for i in range(count + 1)]
    return [start + (stop - start - length) // 2 for start, stop in pairwise(borders)]


def plane(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """One plane of a source's window, the one in which its bands differ most: (band, y, x) -> (y, x), NaN where a band is.

    It is the first principal component of the standardised bands. Their mean would do where all bands show the
    same edges with the same sign; where vegetation is dark in one and bright in another, it would level them.
    The sign is of no consequence to `measure`.
    """
    bands, rows, columns = values.shape
    flat = values.reshape(bands, -1).astype(np.float64)
    valid = np.isfinite(flat).all(axis=0)
    result = np.full(rows * columns, np.nan, np.float32)
    if not valid.any():
        return result.reshape(rows, columns)
    known = flat[:, valid]
    known -= known.mean(axis=1, keepdims=True)
    spread = known.std(axis=1, keepdims=True)
    known /= np.where(spread > 0, spread, 1)  # a constant band stays zero and takes no part
    _, axes = np.linalg.eigh(known @ known.T)
    result[valid] = axes[:, -1] @ known
    return result.reshape(rows, columns)


def measure(windows: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Shift:
    """The shift of a second source against a first one, from windows of both.

    A window is left out when more than `MOST_INVALID` of it has no data in either source, when one is flat there, or
    when it is too small to hold anything. Smaller gaps are bridged from the pixels around them, and count for nothing
    themselves.

    Args:
        windows: of each place the first and the second source's plane, (y, x) of equal shape, NaN where there is no data.

    Raises:
        ValueError: the two planes of a window differ in shape.
    """
    found = [shift for first, second in windows if (shift := _shift(first, second)) is not None]
    if not found:
        return Shift(math.nan, math.nan, 0, 0)
    dy, dx = (float(np.median(along)) for along in zip(*found, strict=True))
    agreeing = sum(math.hypot(y - dy, x - dx) <= AGREEMENT for y, x in found)
    return Shift(dy, dx, len(found), agreeing)


def _shift(first: NDArray[np.float32], second: NDArray[np.float32]) -> tuple[float, float] | None:
    """dy, dx of one window; None where it cannot be measured."""
    if first.shape != second.shape:
        raise ValueError(f"a window is {first.shape} in the first source and {second.shape} in the second; cut both alike")
    if min(first.shape) < 4 * RIM or (~np.isfinite(first) | ~np.isfinite(second)).mean() > MOST_INVALID:
        return None
    edges = [_edges(first), _edges(second)]
    if edges[0] is None or edges[1] is None:
        return None
    # Plain cross-correlation: to whiten the spectrum, as phase correlation does, would weigh noise like edges.
    move, _, _ = phase_cross_correlation(edges[0], edges[1], upsample_factor=UPSAMPLING, normalization=None)
    return -float(move[0]), -float(move[1])  # scikit-image tells how to move the second back onto the first


def _edges(values: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """How much each pixel is one of an edge, about a mean of zero and faded out towards the rim; None if there is none."""
    valid = np.isfinite(values)
    level = values.astype(np.float64)
    level[valid] -= _slope(level, valid)[valid]
    # Pixels without data weigh nothing: the rim of a gap that both sources have would else be an edge at the same
    # place in both, and pass for a shift of zero.
    weight = gaussian(valid.astype(np.float64), SMOOTHING)
    smooth = gaussian(np.where(valid, level, 0.0), SMOOTHING) / np.maximum(weight, 1e-6)
    strength = np.sqrt(np.hypot(*np.gradient(smooth)))[RIM:-RIM, RIM:-RIM]
    inside = valid[RIM:-RIM, RIM:-RIM]
    if smooth[valid].std() <= 1e-6 * np.abs(values[valid]).max() or not inside.any():
        return None  # flat or an even slope, but for the rounding of float32
    strength = np.where(inside, strength - strength[inside].mean(), 0.0)
    return np.asarray(strength * np.outer(*(np.hanning(size) for size in strength.shape)))


def _slope(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The plane that fits the valid pixels best: (y, x)."""
    y, x = (axis - axis.mean() for axis in np.mgrid[: values.shape[0], : values.shape[1]].astype(np.float64))
    terms = np.stack([np.ones_like(y), y, x])
    known = terms[:, valid]
    fit = np.linalg.lstsq(known @ known.T, known @ values[valid], rcond=None)[0]
    return np.asarray(np.tensordot(fit, terms, axes=1))
