"""Measure the residual shift between two co-registered sources from their pixels. numpy and scikit-image; no files.

Different sensors share edges, not brightness: a lake may be dark in one and bright in another, but its shore is in the
same place in both. Registration therefore uses the gradient magnitude; its square root keeps a few bright roofs from
dominating. Two sensors may still share so little that the best match is chance; few windows then agree, see
`Shift.credible`.

Sign convention: (dy, dx) is the displacement of the second source down and to the right of the first, in pixels of the
reference grid. A feature at (y, x) in the first source is at (y + dy, x + dx) in the second.
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
from pipeline.parallel.executor import Executor
from pipeline.scenes.geometries import AreaMask
from pipeline.scenes.source import AlignedSource

#: Windows are skipped if a larger share of their pixels has no data in one source or the other.
MOST_INVALID = 0.2
#: Windows whose shift is within this many pixels of the median agree with it.
AGREEMENT = 0.5
#: Shifts are resolved to 1 / UPSAMPLING of a pixel.
UPSAMPLING = 10
#: Standard deviation in pixels of the smoothing that suppresses edges from noise.
SMOOTHING = 1.0
#: Pixels trimmed from a window's border, where smoothing and gradient are incomplete: four deviations plus one.
BORDER = 5
#: Number of windows among which those inside an area are chosen.
CANDIDATES = 1024
# Thresholds of `Shift.credible`.
FEWEST_AGREEING = 3
LEAST_AGREEING = 0.6


@dataclass(frozen=True)
class Shift:
    """The median shift over windows, in pixels of the reference grid; NaN if no window could be measured."""

    dy: float  #: displacement of the second source down from the first
    dx: float  #: displacement to the right
    windows: int  #: number of windows that could be measured
    agreeing: int  #: number of these within `AGREEMENT` of the median

    @property
    def credible(self) -> bool:
        """Whether the shift is real and not chance: at least 3 windows agree, and at least 60 % of all.

        In a real scene, bands of one sensor agreed in 9 of 9 windows, shifted or not. Unlike sensors (optical and radar,
        optical and elevation), noise and a mirrored scene agreed in at most a third. Two of three are not enough: in
        noise, one in a hundred sets of three windows had two that agreed.
        """
        return self.agreeing >= max(FEWEST_AGREEING, LEAST_AGREEING * self.windows)

    @property
    def distance(self) -> float:
        """Length of the shift in pixels."""
        return math.hypot(self.dy, self.dx)


def sample_windows(shape_yx: tuple[int, int], side: int = 256, count: int = 9) -> list[Window]:
    """Up to `count` non-overlapping windows of `side` pixels, spread evenly over a grid, row by row.

    If the grid is smaller than `side` along an axis, windows have the grid's length there. For a credible shift, choose a
    `side` that leaves room for at least three windows, preferably nine.
    """
    height, width = (min(side, size) for size in shape_yx)
    most_y, most_x = shape_yx[0] // height, shape_yx[1] // width
    rows = max(1, min(most_y, round(math.sqrt(count * most_y / most_x))))
    columns = max(1, min(most_x, count // rows))
    rows = max(1, min(most_y, count // columns))
    starts_y, starts_x = _starts(shape_yx[0], height, rows), _starts(shape_yx[1], width, columns)
    return [Window(y, x, height, width) for y in starts_y for x in starts_x]


def windows_with_data(area: AreaMask | None, shape_yx: tuple[int, int], side: int, count: int) -> list[Window]:
    """Windows as `sample_windows`; with an area, those of `CANDIDATES` that are mostly inside, spread evenly over it."""
    if area is None:
        return sample_windows(shape_yx, side, count)
    inside = {window: area.count(window) for window in sample_windows(shape_yx, side, CANDIDATES)}
    most = max(inside.values())
    if not most:  # a narrow area between the candidates
        return sample_windows(shape_yx, side, count)
    full = [window for window, pixels in inside.items() if pixels >= (1 - MOST_INVALID) * most]
    number = min(count, len(full))
    return [full[(2 * i + 1) * len(full) // (2 * number)] for i in range(number)]


def _starts(size: int, length: int, count: int) -> list[int]:
    """Start positions of `count` windows along an axis, each centred in its own strip."""
    borders = [size * i // count for i in range(count + 1)]
    return [start + (stop - start - length) // 2 for start, stop in pairwise(borders)]


def most_varied_plane(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Reduce a source's window to the plane of largest variance: (band, y, x) -> (y, x), NaN where any band is NaN.

    The plane is the first principal component of the standardised bands. Their mean would work if all bands had the same
    edges with the same sign; where vegetation is dark in one band and bright in another, it would cancel them. The sign
    does not matter to `measure`.
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
    known /= np.where(spread > 0, spread, 1)  # a constant band stays zero and has no effect
    _, axes = np.linalg.eigh(known @ known.T)
    result[valid] = axes[:, -1] @ known
    return result.reshape(rows, columns)


def measure_shift(windows: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Shift:
    """Measure the shift of a second source against a first one from windows of both.

    A window is skipped if more than `MOST_INVALID` of it has no data in one source or the other, if one of them is flat
    there, or if the window is too small. Smaller gaps are interpolated from the surrounding pixels and have zero weight.

    Args:
        windows: per window the planes of the first and second source, (y, x) of equal shape, NaN where there is no data.

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
    """dy, dx of one window; None if it cannot be measured."""
    if first.shape != second.shape:
        raise ValueError(f"a window is {first.shape} in the first source and {second.shape} in the second; they must match")
    if min(first.shape) < 4 * BORDER or (~np.isfinite(first) | ~np.isfinite(second)).mean() > MOST_INVALID:
        return None
    edges = [_edges(first), _edges(second)]
    if edges[0] is None or edges[1] is None:
        return None
    # Plain cross-correlation: whitening the spectrum, as phase correlation does, would weight noise like edges.
    move, _, _ = phase_cross_correlation(edges[0], edges[1], upsample_factor=UPSAMPLING, normalization=None)
    return -float(move[0]), -float(move[1])  # scikit-image returns the move from the second to the first


def _edges(values: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Edge strength per pixel, with zero mean and tapered towards the border; None if there are no edges."""
    valid = np.isfinite(values)
    level = values.astype(np.float64)
    level[valid] -= _slope(level, valid)[valid]
    # Pixels without data have zero weight: otherwise the border of a gap that both sources share would be an edge at the
    # same place in both and look like a shift of zero.
    weight = gaussian(valid.astype(np.float64), SMOOTHING)
    smooth = gaussian(np.where(valid, level, 0.0), SMOOTHING) / np.maximum(weight, 1e-6)
    strength = np.sqrt(np.hypot(*np.gradient(smooth)))[BORDER:-BORDER, BORDER:-BORDER]
    inside = valid[BORDER:-BORDER, BORDER:-BORDER]
    if smooth[valid].std() <= 1e-6 * np.abs(values[valid]).max() or not inside.any():
        return None  # flat or a uniform slope, apart from float32 rounding
    strength = np.where(inside, strength - strength[inside].mean(), 0.0)
    return np.asarray(strength * np.outer(*(np.hanning(size) for size in strength.shape)))


def _slope(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The plane that best fits the valid pixels: (y, x)."""
    y, x = (axis - axis.mean() for axis in np.mgrid[: values.shape[0], : values.shape[1]].astype(np.float64))
    terms = np.stack([np.ones_like(y), y, x])
    known = terms[:, valid]
    fit = np.linalg.lstsq(known @ known.T, known @ values[valid], rcond=None)[0]
    return np.asarray(np.tensordot(fit, terms, axes=1))


#: Number of windows along each axis, and the maximum side of a window in reference pixels.
ACROSS, LONGEST = 3, 256
#: Credible shifts of at least this many pixels cause a warning. Real bands of one sensor differed by 0.1.
TOO_FAR = 0.75


def measure_shifts(executor: Executor, sources: Sequence[AlignedSource], shape_yx: tuple[int, int]) -> dict[str, Shift]:
    """Measure the shift of every source but the first against the first, in reference pixels.

    Raises:
        InputError: a file cannot be read.
    """
    if len(sources) < 2:
        return {}
    side = max(1, min(LONGEST, min(shape_yx) // ACROSS))
    found: list[tuple[Window, list[NDArray[np.float32]]]] = []
    parts = windows_with_data(sources[0].area, shape_yx, side, ACROSS**2)
    executor.each(_planes, sources, parts, found.append)
    found.sort(key=lambda part: part[0])
    planes = [part for _, part in found]
    return {
        source.declared.name: measure_shift([(part[0], part[position]) for part in planes])
        for position, source in enumerate(sources)
        if position
    }


def _planes(sources: Sequence[AlignedSource], window: Window) -> tuple[Window, list[NDArray[np.float32]]]:
    """One plane of each source in a window, (y, x) in reference pixels; NaN where there is no data."""
    return window, [most_varied_plane(_to_reference(source, window)) for source in sources]


def _to_reference(source: AlignedSource, window: Window) -> NDArray[np.float32]:
    """A source's values (band, y, x) in reference pixels, means for a finer source; NaN where there is no data.

    Of periods with gaps, it is the clearest in the window: the edge of a filled or interpolated cloud is none of the ground.
    """
    values, valid, counts = source.observe(window)
    if source.declared.gaps != "exclude" and counts is not None:
        clearest = int((counts > 0).sum(axis=(1, 2)).argmax())
        values, valid = values.reshape(len(counts), -1, *valid.shape)[clearest], counts[clearest] > 0
    known = np.where(valid, values, np.float32(np.nan)).astype(np.float32)
    s = source.scale
    return np.asarray(known.reshape(len(known), window.height, s, window.width, s).mean(axis=(2, 4)))


def describe_shift(name: str, first: str, shift: Shift) -> str:
    """Describe a shift in words."""
    if not shift.credible:
        return f"{name}: shift against {first} not determined ({shift.agreeing} of {shift.windows} windows agree)"
    if shift.distance < TOO_FAR:
        return f"{name}: aligned with {first} within {max(0.1, math.ceil(10 * shift.distance) / 10):.1f} pixels"
    return (
        f"{name}: shifted {shift.distance:.1f} pixels against {first} "
        f"({abs(shift.dy):.1f} {'down' if shift.dy > 0 else 'up'}, "
        f"{abs(shift.dx):.1f} {'right' if shift.dx > 0 else 'left'}; {shift.agreeing} of {shift.windows} windows agree)"
    )
