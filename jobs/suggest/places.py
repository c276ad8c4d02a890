"""Score places of a map and choose some of them: informative ones, of every class, apart from each other. Numpy only.

A place is a square of pixels. The score of a pixel is the geometric mean, over measures such as entropy, of the share of the
map whose measure is smaller; that of a place is the sum over its pixels that can be labelled, over its area, so that single
noisy pixels score low. Half of the places are chosen at random with probabilities in proportion to a power of their scores,
without replacement (Kirsch et al., "Stochastic batch acquisition: a simple baseline for deep active learning", TMLR 2023,
the power variant, by Gumbel noise on the logarithms): the very highest scores alone would be many labels of one and the same
kind. Each predicted class gets a share of them in proportion to the square root of its summed score. The other half is drawn
with equal probabilities: labels of uncertain places alone are of other class proportions than the ground, which a model
takes over, and many are of mixed pixels. Choosing uncertain samples that are also diverse, in space too, is usual in remote
sensing (Tuia et al., "A survey of active learning algorithms for supervised remote sensing image classification", IEEE JSTSP
2011).

Legend for shapes: H, W of a window, n places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.splitmix64 import GOLDEN, mix

#: Power of the score in the probability of a place: of places whose scores are uniform, the mean choice is in the top 17 %.
POWER = 4
#: Places of each class that are kept while a map is read, per place to choose, and at least.
KEPT, LEAST = 20, 1000
#: Score of a pixel below which it cannot be chosen, for the logarithm.
_NONE = 1e-9


@dataclass(frozen=True)
class Rank:
    """The share of a map's pixels whose measure is smaller than a value."""

    values: NDArray[np.float64]  #: a sample of the map's pixels, ascending

    @classmethod
    def of(cls, sample: NDArray[np.floating]) -> Rank:
        """From values of the map, NaN where it has none."""
        known = sample[np.isfinite(sample)]
        return cls(np.sort(known.astype(np.float64)))

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the shares, from 0 to 1, those of equal values in the middle; 0 for NaN."""
        if not len(self.values):
            return np.zeros(values.shape)
        below, above = (np.searchsorted(self.values, values, side=side) for side in ("left", "right"))
        return np.where(np.isfinite(values), (below + above) / (2 * len(self.values)), 0.0)


@dataclass(frozen=True)
class Places:
    """Places of one or several scenes: (n,) each."""

    scene: NDArray[np.int64]  #: position of the scene
    row: NDArray[np.int64]  #: of the central pixel
    column: NDArray[np.int64]
    position: NDArray[np.int64]  #: of the predicted class at the central pixel
    score: NDArray[np.float64]
    key: NDArray[np.float64]  #: the order in which places are chosen by their scores, the largest first
    chance: NDArray[np.float64]  #: the order in which places are drawn with equal probabilities, the largest first

    def __len__(self) -> int:
        return len(self.scene)

    def __getitem__(self, chosen: NDArray[np.generic] | slice) -> Places:
        """Return some of the places."""
        return Places(**{name: values[chosen] for name, values in vars(self).items()})

    @classmethod
    def joined(cls, parts: Sequence[Places]) -> Places:
        """Return the places of several parts, at least one."""
        return cls(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def pixel_scores(measures: Mapping[str, NDArray[np.floating]], ranks: Mapping[str, Rank]) -> NDArray[np.float64]:
    """Return the scores (H, W) of pixels from their measures (H, W) each."""
    logarithms = [np.log(np.maximum(ranks[name](values), _NONE)) for name, values in measures.items()]
    return np.asarray(np.exp(np.mean(logarithms, axis=0)))


def score_places(
    scores: NDArray[np.float64],
    positions: NDArray[np.integer],
    eligible: NDArray[np.bool_],
    *,
    side: int,
    corner_yx: tuple[int, int],
    scene: int,
    seed: int,
) -> Places:
    """Score the places of a window, squares anchored at its corner; squares that it cuts are left out.

    Args:
        scores: of the pixels (H, W).
        positions: of their predicted classes (H, W).
        eligible: which pixels can be labelled (H, W); the central pixel of a place must be.
        side: of a place, in pixels.
        corner_yx: the window's first pixel in the grid.
        scene: position of the scene.
        seed: of the choice; a place's random number depends on its own position alone, not on the window.
    """
    rows, columns = (length // side for length in scores.shape)
    cut = (slice(rows * side), slice(columns * side))
    squares = np.where(eligible, scores, 0.0)[cut].reshape(rows, side, columns, side)
    mean = squares.mean(axis=(1, 3))
    middle = (slice(side // 2, rows * side, side), slice(side // 2, columns * side, side))
    row, column = np.nonzero(eligible[middle] & (mean > _NONE))
    score = mean[row, column]
    position = positions[middle][row, column].astype(np.int64)
    y, x = (corner + side // 2 + side * index for corner, index in zip(corner_yx, (row, column), strict=True))
    noise, chance = (_gumbel(y, x, scene=scene, seed=seed, draw=draw) for draw in range(2))
    return Places(np.full(len(y), scene), y, x, position, score, POWER * np.log(score) + noise, chance)


def _gumbel(rows: NDArray[np.int64], columns: NDArray[np.int64], *, scene: int, seed: int, draw: int) -> NDArray[np.float64]:
    """Standard Gumbel numbers (n,), each a function of seed, draw, scene and pixel alone."""
    salt = np.random.SeedSequence([seed, scene, draw]).generate_state(1, np.uint64)[0]
    numbers = (rows.astype(np.uint64) << np.uint64(32)) | columns.astype(np.uint64)
    uniform = ((mix((numbers ^ salt) * GOLDEN) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(-np.log(-np.log(uniform)))


@dataclass
class BestPlaces:
    """The best places of each class among those seen so far, and some of all: memory does not grow with the map."""

    number: int  #: of places to choose in the end
    best: dict[int, Places] = field(default_factory=dict)
    drawn: list[Places] = field(default_factory=list)  #: with equal probabilities; one element, if any
    sums: dict[int, float] = field(default_factory=dict)  #: of the scores of all places seen, by class
    seen: int = 0

    def add(self, found: Places) -> None:
        """Add places."""
        self.seen += len(found)
        most = max(LEAST, KEPT * self.number)
        drawn = Places.joined([*self.drawn, found])
        self.drawn = [drawn[np.argsort(-drawn.chance, kind="stable")[:most]]]
        for position in np.unique(found.position).tolist():
            own = found[found.position == position]
            self.sums[position] = self.sums.get(position, 0.0) + float(own.score.sum())
            own = Places.joined([self.best[position], own]) if position in self.best else own
            self.best[position] = own[np.argsort(-own.key, kind="stable")[:most]]

    def choose(self, *, distance: float) -> Places | None:
        """Choose the places: half, rounded up, by their scores, the others with equal probabilities.

        None without any.

        Args:
            distance: between the central pixels of two places of a scene, at least, in pixels.
        """
        if not self.best:
            return None
        half = -(-self.number // 2)
        best, drawn = Places.joined([self.best[position] for position in sorted(self.best)]), self.drawn[0]
        best, drawn = best[_order(best, best.key)], drawn[_order(drawn, drawn.chance)]
        apart = _Apart(distance)
        apart.take(best, half, quotas(self.sums, half))
        apart.take(best, half)  # what a class cannot use goes to the others
        apart.take(drawn, self.number)
        apart.take(best, self.number)  # those drawn may have been too near to each other
        return Places.joined(apart.taken)


def _order(places: Places, key: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of places by a key, the largest first; equal ones by their position."""
    return np.lexsort((places.column, places.row, places.scene, -key))


@dataclass
class _Apart:
    """Places that were taken, none nearer to another one of its scene than a distance."""

    distance: float  #: in pixels
    taken: list[Places] = field(default_factory=list)
    number: int = 0
    #: Pixels (row, column) that were taken, by scene and square of a side of `distance`.
    _squares: dict[tuple[int, int, int], list[tuple[int, int]]] = field(default_factory=dict)

    def take(self, places: Places, number: int, quota: Mapping[int, int] | None = None) -> None:
        """Take places in order while there are fewer than a number, and of each class no more than its quota."""
        left = None if quota is None else dict(quota)
        chosen = []
        columns = (places.scene.tolist(), places.row.tolist(), places.column.tolist(), places.position.tolist())
        for index, (scene, row, column, position) in enumerate(zip(*columns, strict=True)):
            if self.number == number:
                break
            if (left is None or left[position]) and self._add(scene, row, column):
                chosen.append(index)
                if left is not None:
                    left[position] -= 1
        self.taken.append(places[np.array(chosen, np.intp)])

    def _add(self, scene: int, row: int, column: int) -> bool:
        """Add a place, unless it is too near to another one, or the same."""
        side = max(self.distance, 1.0)
        y, x = int(row // side), int(column // side)
        near = (self._squares.get((scene, y + down, x + right), ()) for down in (-1, 0, 1) for right in (-1, 0, 1))
        if any(math.hypot(r - row, c - column) < side for found in near for r, c in found):
            return False
        self._squares.setdefault((scene, y, x), []).append((row, column))
        self.number += 1
        return True


def quotas(sums: Mapping[int, float], number: int) -> dict[int, int]:
    """Return how many of a number of places each class gets: one each, the others by the square root of its sum.

    >>> quotas({0: 9.0, 3: 1.0, 5: 1.0}, 10)
    {0: 5, 3: 3, 5: 2}
    """
    positions = sorted(sums, key=lambda position: (-sums[position], position))[:number]
    root = np.sqrt([sums[position] for position in positions])
    exact = 1 + (number - len(positions)) * root / root.sum()
    found = np.floor(exact + 1e-9).astype(int)
    found[np.argsort(found - exact, kind="stable")[: number - found.sum()]] += 1
    chosen = dict(zip(positions, found.tolist(), strict=True))
    return {position: chosen.get(position, 0) for position in sorted(sums)}
