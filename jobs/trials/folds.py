"""Assign samples to folds by spatial blocks, so that no training patch reaches into a block that is held out.

Positions are rows and columns of each store's reference grid; blocks are squares anchored at its origin. Numpy only.

Legend for shapes: n samples, B blocks that hold samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

#: Number of folds by default.
FOLDS = 3
#: Blocks per fold at least, where blocks can be made smaller; and the least side of a block, in patches: of smaller ones
#: hardly a sample would be far enough from its neighbors.
BLOCKS_PER_FOLD, LEAST_SIDE = 4, 3
#: Fewer samples of a class say little about it.
FEW = 20


@dataclass(frozen=True)
class Fold:
    """Positions of the samples to train on and of those to predict."""

    training: NDArray[np.int64]
    held_out: NDArray[np.int64]


@dataclass(frozen=True)
class Folds:
    """The folds of n samples; none if there can be no trials, for the `reason` given."""

    folds: tuple[Fold, ...]
    block: NDArray[np.int64]  #: of each sample, from 0 (n,)
    side: int  #: of a block, in reference pixels
    #: The fold that holds a sample out; -1 if none does, or if that fold has no training sample of its class (n,).
    group: NDArray[np.int64]
    notes: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def measured(self) -> NDArray[np.int64]:
        """Positions of the samples on which candidates are compared."""
        return np.flatnonzero(self.group >= 0)


def make_folds(
    labels: NDArray[np.int64],
    positions: NDArray[np.int64],
    is_validation: NDArray[np.bool_],
    *,
    classes: Sequence[str],
    patch: int,
    side: int,
    seed: int,
    number: int = FOLDS,
) -> Folds:
    """Assign samples to folds.

    Each block is held out once. The other folds' samples are trained on, except those whose patch would overlap a patch
    around any pixel of a block that is held out. With fewer than two blocks, or where a fold would be left with samples of
    fewer than two classes to train on, there is one fold: the given training samples, with validation held out.

    Args:
        labels: class positions (n,).
        positions: store, row and column of each sample (n, 3).
        is_validation: whether it is a validation sample, otherwise a training sample (n,).
        classes: names of all classes, for notes.
        patch: side in reference pixels.
        side: of the split's blocks, in reference pixels; smaller blocks are made if these are too few, larger ones if
            these are smaller than `LEAST_SIDE` patches.
        seed: decides between equally good assignments.
        number: of folds; fewer if there are fewer blocks.
    """
    side, block = _blocks(positions, side=side, least=LEAST_SIDE * patch, wanted=BLOCKS_PER_FOLD * number)
    count = int(block.max(initial=-1)) + 1
    notes = [
        _few(name, int(n)) for name, n in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True) if n < FEW
    ]
    if count >= 2:
        table = np.zeros((count, len(classes)), np.int64)
        np.add.at(table, (block, labels), 1)
        fold = assign(table, folds=min(number, count), seed=seed)[block]
        folds = tuple(_fold(fold == k, positions, side=side, patch=patch) for k in range(fold.max() + 1))
        if all(len(np.unique(labels[f.training])) > 1 for f in folds):
            notes += _single_blocks(table, classes)
            return _measured(folds, labels, block, side, notes, classes)
        cause = f"blocks of {side} x {side} pixels leave a fold without training samples of two classes"
    else:
        cause = f"all samples are in one block of {side} x {side} pixels"
    if not is_validation.any():
        reason = f"{cause}, and there are no validation samples"
        return Folds((), block, side, np.full(len(labels), -1), tuple(notes), reason)
    if len(np.unique(labels[~is_validation])) < 2:
        reason = f"{cause}, and the training samples are of one class"
        return Folds((), block, side, np.full(len(labels), -1), tuple(notes), reason)
    notes.append(f"{cause}: candidates are trained on the training samples and compared on the validation samples alone")
    single = Fold(np.flatnonzero(~is_validation), np.flatnonzero(is_validation))
    return _measured((single,), labels, block, side, notes, classes)


def _blocks(positions: NDArray[np.int64], *, side: int, least: int, wanted: int) -> tuple[int, NDArray[np.int64]]:
    """Choose the side of blocks, and number the block of each sample (n,)."""
    side = max(side, least)
    while True:
        keys = np.column_stack([positions[:, :1], positions[:, 1:] // side])
        found, block = np.unique(keys, axis=0, return_inverse=True)
        if len(found) >= wanted or side == least:
            return side, block.reshape(-1)
        side = max(side // 2, least)


def assign(table: NDArray[np.int64], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Assign blocks to folds (B,) so that every class is spread over them as evenly as possible.

    Greedy (Sechidis et al., "On the stratification of multi-label data", ECML PKDD 2011): classes from the rarest to the
    most frequent, the blocks that hold most of a class first, each to the fold that holds the least of that class, then
    the fewest samples. With at least as many blocks as folds, every fold gets one.

    Args:
        table: number of samples per block and class (B, K).
        folds: number of folds.
        seed: decides between blocks and between folds that are equal in all this.
    """
    generator = np.random.default_rng(seed)
    ranks = generator.permutation(len(table))
    found = np.full(len(table), -1)
    held = np.zeros((folds, table.shape[1]), np.int64)
    for c in np.argsort(table.sum(axis=0), kind="stable"):
        own = np.flatnonzero((table[:, c] > 0) & (found < 0))
        for block in own[np.lexsort([ranks[own], -table[own, c]])]:
            fold = np.lexsort([generator.permutation(folds), held.sum(axis=1), held[:, c]])[0]
            found[block] = fold
            held[fold] += table[block]
    return found


def _fold(is_held: NDArray[np.bool_], positions: NDArray[np.int64], *, side: int, patch: int) -> Fold:
    """The fold that holds out these samples (n,), and trains on those that are far enough from their blocks."""
    others = np.flatnonzero(~is_held)
    near = _within(positions[others], positions[is_held], side=side, distance=patch - 1)
    return Fold(others[~near], np.flatnonzero(is_held))


def _within(positions: NDArray[np.int64], held: NDArray[np.int64], *, side: int, distance: int) -> NDArray[np.bool_]:
    """Whether a pixel is within a distance along both axes of any block that holds one of the `held` pixels."""
    margin = distance // side + 2  # blocks around the grid, so that the numbers of blocks outside it are their own
    rows, columns = (int(max(positions[:, i].max(initial=0), held[:, i].max(initial=0))) // side for i in (1, 2))

    def number(store: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
        line = store * (rows + 2 * margin) + row // side + margin
        return np.asarray(line * (columns + 2 * margin) + column // side + margin)

    blocks = np.unique(number(*held.T))
    # No block fits between two of these steps.
    steps = sorted({*range(-distance, distance, side), distance})
    near = np.zeros(len(positions), bool)
    for y, x in product(steps, steps):
        near |= np.isin(number(positions[:, 0], positions[:, 1] + y, positions[:, 2] + x), blocks)
    return near


def _measured(
    folds: tuple[Fold, ...],
    labels: NDArray[np.int64],
    block: NDArray[np.int64],
    side: int,
    notes: list[str],
    classes: Sequence[str],
) -> Folds:
    """Complete folds: a sample whose class its fold cannot learn says nothing about candidates."""
    group = np.full(len(labels), -1)
    left_out = np.zeros(len(classes), np.int64)
    for number, fold in enumerate(folds):
        can_learn = np.isin(labels[fold.held_out], labels[fold.training])
        group[fold.held_out[can_learn]] = number
        left_out += np.bincount(labels[fold.held_out[~can_learn]], minlength=len(classes))
    notes += [
        f"class {name!r}: {n} samples are not compared, because no training sample of the class is left in their fold"
        for name, n in zip(classes, left_out.tolist(), strict=True)
        if n
    ]
    if (group < 0).all():
        return Folds((), block, side, group, tuple(notes), "no fold holds out a sample of a class that it trains on")
    return Folds(folds, block, side, group, tuple(notes))


def _single_blocks(table: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    blocks = (table > 0).sum(axis=0)
    return [
        f"class {name!r} is in one block only: no candidate can be tested on it"
        for name, n in zip(classes, blocks, strict=True)
        if n == 1
    ]


def _few(name: str, samples: int) -> str:
    return f"class {name!r} has {samples} train and validation samples, fewer than {FEW}: its results are uncertain"
