"""Estimate the areas of transitions from points whose classes at both dates are known.

The strata are the transitions of the two maps, and a point's reference is its labelled transition: the stratified estimators
of Olofsson et al. (2014, section 4) with transitions in the place of classes, in `pipeline.assessment.estimators`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.assessment.estimators import Estimates, Frame, Tally, TooFewPointsError, estimate, merged_strata
from pipeline.transitions.count import Transitions

#: How the points were drawn: at random within each transition of the two maps, or at random (or systematically) in all.
SampledBy = Literal["transitions", "random"]
#: Strata that a message lists.
LISTED = 5


@dataclass(frozen=True)
class LabelledTransitions:
    """Points with the classes of both maps and of both labels, as positions among `Transitions.classes`: (n,) each."""

    mapped_before: NDArray[np.int64]
    mapped_after: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    areas: NDArray[np.float64] | None  #: of the points' pixels, in hectares; None where areas are not known


@dataclass(frozen=True)
class AreaEstimate:
    """An estimated area with its 95 % interval, in hectares, or in pixels where areas are not known."""

    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class ChangeEstimate:
    """Estimated areas, in hectares, or in pixels where areas are not known."""

    points: int
    unit: Literal["ha", "px"]
    changed: AreaEstimate
    transitions: dict[tuple[str, str], AreaEstimate]  #: of all pairs of classes in the maps or the labels
    agreement: float  #: share of the area whose transition both maps have right
    merged: int  #: transitions with fewer than two points, whose strata were merged


def estimate_change(found: Transitions, labelled: LabelledTransitions, sampled_by: SampledBy) -> ChangeEstimate:
    """Estimate the area of every transition, and of all changes.

    Raises:
        InputError: a stratum has fewer than two points, though points were drawn by transitions; or there are too few.
    """
    count = len(found.classes)
    mapped = labelled.mapped_before * count + labelled.mapped_after
    reference = labelled.before * count + labelled.after
    pixels = found.pixels.ravel()
    known = not np.isnan(found.hectares).any()
    sizes = found.hectares.ravel() if known else pixels.astype(np.float64)
    strata = np.flatnonzero(pixels)
    points = np.bincount(mapped, minlength=count**2)[strata]
    groups = merged_strata(points, pixels[strata])
    merged = int((np.bincount(groups, minlength=len(strata))[groups] > 1).sum())
    if merged and sampled_by == "transitions":
        raise InputError(_too_few(found, strata[(points < 2) & (points < pixels[strata])]))
    of_group, own = np.unique(groups, return_inverse=True)
    in_pixels = np.bincount(own, pixels[strata], len(of_group)).astype(np.int64)
    frame = Frame(in_pixels, np.bincount(own, sizes[strata], len(of_group)).astype(np.float64))
    stratum = np.zeros(count**2, np.int64)
    stratum[strata] = own
    cells = np.union1d(strata, reference)  # the classes of the estimators are the transitions that occur
    position = np.zeros(count**2, np.int64)
    position[cells] = np.arange(len(cells))

    def estimated(of_cell: NDArray[np.int64], classes: int) -> Estimates:
        areas = labelled.areas if known else None
        tally = Tally.of(stratum[mapped], of_cell[mapped], of_cell[reference], areas, number=len(of_group), classes=classes)
        return estimate(tally, frame)

    try:
        each = estimated(position, len(cells))
        changed = (np.arange(count**2) // count != np.arange(count**2) % count).astype(np.int64)
        both = estimated(changed, 2)
    except TooFewPointsError as error:
        raise InputError(f"{len(mapped)} points are too few for an estimate; label more.") from error
    total = float(sizes.sum())
    names = [(found.classes[cell // count], found.classes[cell % count]) for cell in cells.tolist()]
    by_cell = _areas(each, total)
    return ChangeEstimate(
        points=len(mapped),
        unit="ha" if known else "px",
        changed=_areas(both, total)[1],
        transitions=dict(zip(names, by_cell, strict=True)),
        agreement=float(each.overall.value),
        merged=merged,
    )


def _areas(found: Estimates, total: float) -> list[AreaEstimate]:
    interval = found.proportions.interval()
    rows = zip(found.proportions.value, found.proportions.standard_error, interval.low, interval.high, strict=True)
    return [AreaEstimate(*(float(value) * total for value in row)) for row in rows]


def _too_few(found: Transitions, cells: NDArray[np.int64]) -> str:
    count = len(found.classes)
    named = [f"{found.classes[cell // count]} -> {found.classes[cell % count]}" for cell in cells.tolist()]
    return (
        f"{_listed(named)}: fewer than two labelled points in these transitions of the maps. Label more there; or, if the "
        "points were drawn without regard to transitions, pass `--sampled-by random`."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
