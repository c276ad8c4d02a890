"""Design-based estimators of accuracy and area from a stratified probability sample. numpy only.

One estimator serves all designs: the stratified estimators of indicators of Stehman (2014), which hold whatever the strata
are. Where they are the classes of the map, and pixels are of equal area, they give the figures of Olofsson et al. (2014).
A simple random or systematic sample is stratified after it was drawn (post-stratification, Card 1982), conditionally on the
number of points in each stratum (Holt and Smith 1979), as Olofsson et al. recommend.

Every figure is a ratio R = Y / X of two proportions of area, each the weighted mean of a value of (map class, reference
class): the indicator of agreement over 1 for overall accuracy, of agreement in a class over that of the map's class for its
user's accuracy, and so on. Its variance is that of the mean of y - R x, over X^2 (Stehman 2014, equation 28; for X = 1
equation 25), with the finite population correction. Where pixels differ in area, means are weighted by area, and the
residuals are those of a ratio estimator in each stratum (Cochran 1977, section 6.11).

Standard errors are these. For the intervals, the effective number of points comes from a variance of smoothed shares: to the
points of each stratum that count for R, and to those that count against it, as many are added as is the stratum's share of
the frame, so that all strata together get one of each. Without them, the variance is too small in samples that happen to
have none of the few points with large weights that decide, such as those of a rare class that was mapped as a common one:
95 % intervals of its accuracy then cover as little as 12 % (`benchmarks/intervals.py`).

Shapes: H strata; C classes; leading axes are different samples of one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.assessment.intervals import Interval, wilson

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tally:
    """The labelled points of a sample, summed by stratum, map class and reference class: (..., H, C, C) each."""

    points: Array
    areas: Array  #: sums of the pixels' areas, in any unit
    squares: Array  #: sums of their squares

    @classmethod
    def of(
        cls,
        strata: ArrayLike,
        mapped: ArrayLike,
        reference: ArrayLike,
        areas: ArrayLike | None = None,
        *,
        number: int,
        classes: int,
    ) -> Tally:
        """Sum points, given as positions from 0 (n,), with the areas of their pixels (n,); None: all are equal."""
        cell = (np.asarray(strata, np.int64) * classes + np.asarray(mapped, np.int64)) * classes
        cell = cell + np.asarray(reference, np.int64)
        ones = np.ones(len(cell))
        area = ones if areas is None else np.asarray(areas, np.float64)
        size = number * classes**2
        points, areas, squares = (np.bincount(cell, each, size) for each in (ones, area, area**2))
        shape = (number, classes, classes)
        return cls(*(each.astype(np.float64).reshape(shape) for each in (points, areas, squares)))

    @classmethod
    def of_counts(cls, counts: ArrayLike) -> Tally:
        """From numbers of points (..., H, C, C) of pixels of equal area."""
        points = np.asarray(counts, np.float64)
        return cls(points, points, points)


@dataclass(frozen=True)
class Frame:
    """The strata of a sampling frame."""

    pixels: NDArray[np.int64]  #: (H,)
    areas: Array  #: (H,), in any unit; the numbers of pixels where areas are not known

    @classmethod
    def of_pixels(cls, pixels: ArrayLike) -> Frame:
        """Strata of pixels of equal area."""
        counts = np.asarray(pixels, np.int64)
        return cls(counts, counts.astype(np.float64))


class Figures(NamedTuple):
    """Estimates with their standard errors, and the effective numbers of points of their intervals: (..., K) each."""

    value: Array
    standard_error: Array
    points: Array

    def interval(self) -> Interval:
        """Confidence intervals; see `pipeline.assessment.intervals`."""
        return wilson(self.value, self.points)


@dataclass(frozen=True)
class Estimates:
    """Accuracy and area, estimated from a sample; producer's accuracy and F1 are NaN without reference points."""

    overall: Figures  #: (...,)
    users: Figures  #: (..., C); NaN for a class of which the sample has no mapped point
    producers: Figures
    f1: Figures
    proportions: Figures  #: share of the frame's area that is of each reference class
    cells: Array  #: estimated share of the frame's area by map class and reference class (..., C, C)


class TooFewPointsError(ValueError):
    """Strata have too few points for an estimate, or for its variance."""

    def __init__(self, strata: list[int]) -> None:
        super().__init__(f"strata {strata} have fewer than two points")
        self.strata = strata


def estimate(tally: Tally, frame: Frame) -> Estimates:
    """Estimate accuracy and area.

    Raises:
        TooFewPointsError: a stratum has no point, or one that is not all of it, from which no variance can be estimated.
    """
    moments = _Moments.of(tally, frame)
    classes = tally.points.shape[-1]
    agree = np.eye(classes)
    own = np.einsum("ki,kj->kij", agree, agree)  # (C, C, C): the point is mapped as class k, and is of class k
    mapped, reference = np.repeat(agree[:, :, None], classes, 2), np.repeat(agree[:, None, :], classes, 1)
    whole = np.ones((classes, classes))
    overall = moments.ratio(agree[None], whole[None])
    return Estimates(
        Figures(*(each[..., 0] for each in overall)),
        moments.ratio(own, mapped),
        moments.ratio(own, reference),
        _with_reference(moments.ratio(2 * own, mapped + reference), moments.ratio(own, reference)),
        moments.ratio(reference, np.broadcast_to(whole, reference.shape)),
        moments.cells,
    )


def _with_reference(f1: Figures, producers: Figures) -> Figures:
    """F1, which is not defined for a class without reference points, as elsewhere in mibf."""
    return Figures(*(np.where(np.isnan(producers.value), np.nan, each) for each in f1))


@dataclass(frozen=True)
class _Moments:
    """What means and variances are computed from."""

    shares: Array  #: (..., H, C, C): share of each stratum's area, estimated
    squares: Array  #: (..., H, C, C)
    weights: Array  #: (H,): the strata's shares of the frame's area
    factors: Array  #: (..., H): weight of each stratum's sum of squared residuals in the variance
    points: Array  #: (..., H): effective numbers of points (Kish): smaller where their areas differ
    rest: Array  #: (..., H): the finite population correction

    @classmethod
    def of(cls, tally: Tally, frame: Frame) -> _Moments:
        points, totals = (each.sum(axis=(-2, -1)) for each in (tally.points, tally.areas))
        few = np.broadcast_to((points < 2) & (points < frame.pixels), points.shape).reshape(-1, points.shape[-1]).any(axis=0)
        if few.any():
            raise TooFewPointsError(np.flatnonzero(few).tolist())
        weights = frame.areas / frame.areas.sum()
        rest = 1 - points / frame.pixels
        factors = weights**2 * rest * points / np.maximum(points - 1, 1) / totals**2
        effective = totals**2 / tally.squares.sum(axis=(-2, -1))
        return cls(tally.areas / totals[..., None, None], tally.squares, weights, factors, effective, rest)

    @property
    def cells(self) -> Array:
        """Estimated share of the frame's area by map class and reference class."""
        return np.asarray(np.einsum("h,...hij->...ij", self.weights, self.shares))

    def ratio(self, y: Array, x: Array) -> Figures:
        """Estimate ratios of the means of values of cells, (K, C, C) each; NaN where the denominator is 0.

        In each cell, y is 0 or x, and all x of cells with y, and all of those without, are the same.
        """
        cells = self.cells
        above, below = (np.einsum("...ij,kij->...k", cells, each) for each in (y, x))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.where(below > 0, above / below, np.nan)
            residual = y - np.nan_to_num(value)[..., None, None] * x  # (..., K, C, C)
            variance = self._variance(residual) / below**2
            points = self._effective_points(y, x, below)
        known = below > 0
        return Figures(value, np.where(known, np.sqrt(np.maximum(variance, 0)), np.nan), np.where(known, points, 0.0))

    def _effective_points(self, y: Array, x: Array, below: Array) -> Array:
        """Effective numbers of points R (1 - R) / s^2 of ratios (..., K), with R and s from smoothed shares of the strata.

        Cells of which a stratum has no point of the same map class are taken as impossible there: where strata are the
        classes of the map, they are.
        """
        masks = (y > 0).astype(np.float64), ((x > 0) & (y == 0)).astype(np.float64)
        worth, cost = y.max(axis=(-2, -1))[:, None], (x * masks[1]).max(axis=(-2, -1))[:, None]  # (K, 1)
        mapped = (self.shares.sum(axis=-1) > 0).astype(np.float64)  # (..., H, C)
        right, wrong = (np.einsum("...hij,kij->...kh", self.shares, mask) for mask in masks)
        can_right, can_wrong = (np.einsum("...hi,kij->...kh", mapped, mask) > 0 for mask in masks)
        n = self.points[..., None, :]
        no_other = can_right & can_wrong & (right + wrong > 1 - 1e-9)  # the points of the stratum are one or the other
        right = np.where(can_right & (can_wrong | (right < 1)), (right * n + self.weights) / (n + 2 * self.weights), right)
        smoothed = (wrong * n + self.weights) / (n + 2 * self.weights)
        wrong = np.where(no_other, 1 - right, np.where(can_wrong & (can_right | (wrong < 1)), smoothed, wrong))
        above = worth[:, 0] * np.einsum("h,...kh->...k", self.weights, right)
        value = above / (above + cost[:, 0] * np.einsum("h,...kh->...k", self.weights, wrong))
        plus, minus = worth * (1 - value[..., None]), -cost * value[..., None]
        spread = plus**2 * right + minus**2 * wrong - (plus * right + minus * wrong) ** 2
        per_stratum = self.weights**2 * self.rest / np.maximum(self.points - 1, 1)
        variance = np.einsum("...h,...kh->...k", per_stratum, spread) / below**2
        return np.asarray(value * (1 - value) / variance)

    def _variance(self, values: Array) -> Array:
        """Variance of the estimated means (..., K) of values of cells (..., K, C, C)."""
        mean = np.einsum("...hij,...kij->...kh", self.shares, values)
        linear = np.einsum("...hij,...kij->...kh", self.squares, values)
        squared = np.einsum("...hij,...kij->...kh", self.squares, values**2)
        total = self.squares.sum(axis=(-2, -1))[..., None, :]
        return np.asarray(np.einsum("...h,...kh->...k", self.factors, squared - 2 * mean * linear + mean**2 * total))


def merged_strata(points: ArrayLike, pixels: ArrayLike) -> NDArray[np.int64]:
    """Merge strata of a sample that was stratified after it was drawn, until each has two points or all of its pixels.

    Strata with fewer points are merged with one another, and, if these are still too few, with the smallest of the others
    (collapsed strata, Cochran 1977, section 5A.12). Strata without pixels are left as they are.

    Returns:
        For each stratum the position of the one that it is part of, (H,); of a merged one the first.

    >>> merged_strata([40, 1, 30, 0], [4000, 100, 3000, 50]).tolist()
    [0, 1, 1, 1]
    """
    n, size = np.asarray(points, np.int64), np.asarray(pixels, np.int64)
    few = np.flatnonzero((n < 2) & (n < size))
    found = np.arange(len(n))
    if not len(few):
        return found
    group: list[int] = few.tolist()
    others = [int(h) for h in np.lexsort((found, n)) if h not in set(group) and n[h] > 0]
    while n[group].sum() < 2 and others:
        group.append(others.pop(0))
    found[group] = min(group)
    return found
