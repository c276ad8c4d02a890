"""Prediction sets: the classes of a pixel that cannot be excluded at a stated coverage. Torch and numpy only.

Split conformal prediction (Vovk, Gammerman & Shafer 2005) with the score of least ambiguous sets (Sadinle, Lei & Wasserman,
JASA 2019): a class is in the set if its probability is at least a threshold, which is fitted to validation pixels. The most
probable class is always in the set, so that no set is empty.

Pixels of a block are alike, so blocks are exchangeable at best, not pixels. Each of B blocks has the weight 1 / (B + 1), its
pixels share it equally, and the remaining 1 / (B + 1) counts as missed, for the block that is predicted. A random pixel of a
new block is then in its set with the requested probability, if the blocks are exchangeable and nothing else was fitted to
them (Lee, Barber & Willett, "Distribution-free inference with hierarchical data", 2023; two layers, without subsampling).

Legend for shapes: n pixels, K classes, L levels of coverage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibf.class_priors import CHOICES, PriorSetting

#: Coverages for which thresholds are fitted, in percent.
PERCENT = tuple(range(50, 100))
#: Thresholds are rounded down to this many decimals: sets can only become larger.
DECIMALS = 6
#: In place of the probability of a class that is the most probable one, and so in the set at any threshold.
_ALWAYS = 2.0
#: Rounding errors of sums of weights are smaller.
_ROUNDING = 1e-9


class SetChoice(NamedTuple):
    """Which sets are wanted: their coverage, a whole number of percent, over all pixels or those of each class."""

    coverage: float = 0.9
    class_conditional: bool = False


@dataclass(frozen=True)
class Thresholds:
    """Least probabilities of a class in a set, one for each level of `PERCENT`."""

    together: tuple[float, ...]  #: (L,), the same for all classes
    by_class: tuple[tuple[float, ...], ...]  #: (K, L)


@dataclass(frozen=True)
class PredictionSets:
    """Thresholds fitted to validation pixels, for each setting of the class priors, and what they were fitted to."""

    side: int  #: of the square blocks, in pixels
    pixels: int
    blocks: int
    class_blocks: tuple[int, ...]  #: number of blocks with pixels of each class (K,)
    by_priors: Mapping[PriorSetting, Thresholds]

    def thresholds(self, priors: PriorSetting, choice: SetChoice) -> tuple[float, ...]:
        """Return the least probability of each class in a set (K,)."""
        level, found = PERCENT.index(round(100 * choice.coverage)), self.by_priors[priors]
        if choice.class_conditional:
            return tuple(own[level] for own in found.by_class)
        return (found.together[level],) * len(found.by_class)

    def never_excluded(self, choice: SetChoice) -> list[int]:
        """Return the positions of classes that are in every set, because too few blocks show that they can be excluded."""
        blocks = self.class_blocks if choice.class_conditional else (self.blocks,) * len(self.class_blocks)
        least = least_blocks(choice.coverage)
        return [position for position, number in enumerate(blocks) if number < least]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return vars(self) | {"percent": list(PERCENT), "by_priors": {k: vars(v) for k, v in self.by_priors.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, classes: int) -> PredictionSets:
        """Read JSON values.

        Raises:
            ValueError: they are not those of `to_json` for this number of classes.
        """
        fitted = {
            choice: Thresholds(tuple(own["together"]), tuple(map(tuple, own["by_class"])))
            for choice, own in value["by_priors"].items()
        }
        found = cls(
            side=value["side"],
            pixels=value["pixels"],
            blocks=value["blocks"],
            class_blocks=tuple(value["class_blocks"]),
            by_priors=cast("dict[PriorSetting, Thresholds]", fitted),
        )
        counts = (found.side, found.pixels, found.blocks, *found.class_blocks)
        rows = [row for own in fitted.values() for row in (own.together, *own.by_class)]
        if (
            value["percent"] != list(PERCENT)
            or not fitted
            or not set(fitted) <= set(CHOICES)
            or len(found.class_blocks) != classes
            or any(len(own.by_class) != classes for own in fitted.values())
            or not all(type(count) is int and count >= 0 for count in counts)
            or not all(len(row) == len(PERCENT) and all(_is_probability(t) for t in row) for row in rows)
        ):
            raise ValueError("the thresholds of prediction sets are not valid")
        return found


def least_blocks(coverage: float) -> int:
    """Return the number of blocks below which no class can be excluded at a coverage.

    >>> least_blocks(0.9), least_blocks(0.95)
    (9, 19)
    """
    return math.ceil(1 / (1 - coverage) - 1 - _ROUNDING)


def fit_thresholds(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.int64],
    blocks: NDArray[np.int64],
    weights: NDArray[np.floating] | None = None,
) -> Thresholds:
    """Fit thresholds to pixels of known classes.

    Args:
        probabilities: (n, K), at least one pixel.
        labels: class positions (n,).
        blocks: number of the block of each pixel (n,).
        weights: how many pixels each one stands for, where classes were drawn in other shares (n,); default 1.
    """
    each = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    values = np.where(probabilities.argmax(axis=1) == labels, _ALWAYS, own)
    by_class = []
    for position in range(probabilities.shape[1]):
        chosen = labels == position
        by_class.append(_levels(values[chosen], blocks[chosen], each[chosen]))
    return Thresholds(_levels(values, blocks, each), tuple(by_class))


def _levels(values: NDArray[np.float64], blocks: NDArray[np.int64], weights: NDArray[np.float64]) -> tuple[float, ...]:
    """The largest thresholds that keep each share of `PERCENT` of the weights at or above them (L,); 0 where none does."""
    if not len(values):
        return (0.0,) * len(PERCENT)
    _, block = np.unique(blocks, return_inverse=True)
    sums = np.bincount(block, weights)
    shares = weights / sums[block] / (len(sums) + 1)
    order = np.argsort(-values, kind="stable")
    kept = np.cumsum(shares[order])
    at = np.searchsorted(kept, np.array(PERCENT) / 100 - _ROUNDING)
    found = np.append(np.minimum(values[order], 1.0), 0.0)[at]
    return tuple((np.floor(found * 10**DECIMALS) / 10**DECIMALS).tolist())


def set_members(probabilities: Tensor, thresholds: Sequence[float], *, dim: int) -> Tensor:
    """Return which classes are in the sets, as booleans in the shape of the probabilities; `dim` is that of the classes."""
    shape = [1] * probabilities.dim()
    shape[dim] = -1
    least = torch.tensor(thresholds, dtype=probabilities.dtype, device=probabilities.device).view(shape)
    return (probabilities >= least).scatter(dim, probabilities.argmax(dim=dim, keepdim=True), True)


def set_figures(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return the empirical coverage of sets and their mean size, of all samples and by class; NaN without samples.

    Args:
        counts: by class of the reference (4, K): samples, those whose set holds it, the sum of the sizes of their sets, and
            those whose set is one class.
    """

    def figures(own: NDArray[np.int64]) -> dict[str, float]:
        samples, covered, sizes, single = own.tolist()
        nothing = float("nan")
        return {
            "coverage": covered / samples if samples else nothing,
            "mean_size": sizes / samples if samples else nothing,
            "single_share": single / samples if samples else nothing,
        }

    return figures(counts.sum(axis=1)) | {"classes": [figures(own) for own in counts.T]}


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
