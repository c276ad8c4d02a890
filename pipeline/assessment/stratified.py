"""Estimates from the labelled points of a sample, with the strata that it was drawn from or that it is divided into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.assessment.design import ClassCount, Stratum
from pipeline.assessment.estimators import Estimates, Frame, Tally, TooFewPointsError, estimate, merged_strata


@dataclass(frozen=True)
class Strata:
    """Names and sizes of the strata of a frame."""

    names: tuple[str, ...]
    pixels: NDArray[np.int64]  #: (H,)
    hectares: NDArray[np.float64]  #: (H,); the numbers of pixels where areas are not known

    @classmethod
    def of(cls, parts: Sequence[Stratum | ClassCount]) -> Strata:
        """Those of a design, or classes of the map."""
        pixels = np.array([each.pixels for each in parts], np.int64)
        hectares = np.array([each.pixels if each.hectares is None else each.hectares for each in parts], np.float64)
        return cls(tuple(each.name for each in parts), pixels, hectares)


@dataclass(frozen=True)
class StratifiedPoints:
    """Labelled points: positions of their strata, and of their classes on the map and in reality, (n,) each."""

    strata: NDArray[np.int64]
    mapped: NDArray[np.int64]
    reference: NDArray[np.int64]
    areas: NDArray[np.float64] | None  #: of their pixels, in hectares; None where areas are not known


@dataclass(frozen=True)
class StratifiedEstimate:
    """Estimates, what they were computed from, and the names of strata that had too few points and were merged."""

    estimates: Estimates
    tally: Tally
    merged: tuple[str, ...] = ()


def estimate_stratified(strata: Strata, points: StratifiedPoints, classes: int, *, merge: bool) -> StratifiedEstimate:
    """Estimate accuracy and area; strata without pixels are left out.

    Args:
        strata: of the frame.
        points: at least one.
        classes: number of classes of the map.
        merge: whether to merge strata with fewer than two points, as is right if points were stratified after drawing.

    Raises:
        TooFewPointsError: strata, by position, have too few points for a variance.
    """
    own, pixels, hectares, merged = points.strata, strata.pixels, strata.hectares, tuple[str, ...]()
    count = len(strata.names)
    if merge:
        to = merged_strata(np.bincount(own, minlength=count), pixels)
        joint = np.bincount(to, minlength=count)[to] > 1
        merged = tuple(name for name, is_joint in zip(strata.names, joint, strict=True) if is_joint)
        own, pixels = to[own], np.bincount(to, pixels, count).astype(np.int64)
        hectares = np.bincount(to, hectares, count).astype(np.float64)
    kept = np.flatnonzero(pixels > 0)
    position = np.searchsorted(kept, own)
    tally = Tally.of(position, points.mapped, points.reference, points.areas, number=len(kept), classes=classes)
    try:
        return StratifiedEstimate(estimate(tally, Frame(pixels[kept], hectares[kept])), tally, merged)
    except TooFewPointsError as error:
        raise TooFewPointsError([int(kept[h]) for h in error.strata]) from error
