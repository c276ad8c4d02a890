"""Folds: laws of held-out sets and buffers, balance of classes, and what is done where there are too few blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from jobs.trials.folds import FEW, LEAST_SIDE, Folds, assign, make_folds

NAMES = ("water", "forest", "rock")


def scattered(seed: int, samples: int, *, stores: int, extent: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels, and distinct positions (store, row, column)."""
    generator = np.random.default_rng(seed)
    cells = generator.choice(stores * extent**2, size=min(samples, stores * extent**2), replace=False)
    positions = np.column_stack(np.unravel_index(cells, (stores, extent, extent)))
    return generator.choice(3, size=len(cells), p=[0.6, 0.3, 0.1]), positions


def folds_of(labels: NDArray[np.int64], positions: NDArray[np.int64], **more: Any) -> Folds:
    is_validation = more.pop("is_validation", np.zeros(len(labels), bool))
    settings = {"classes": NAMES, "patch": 3, "side": 12, "seed": 0, **more}
    return make_folds(labels, positions, is_validation, **settings)


def full(rows: int, columns: int) -> NDArray[np.int64]:
    """Every pixel of one grid."""
    y, x = np.indices((rows, columns)).reshape(2, -1)
    return np.column_stack([np.zeros_like(y), y, x])


@given(
    seed=st.integers(0, 100),
    samples=st.integers(2, 200),
    stores=st.integers(1, 2),
    extent=st.integers(2, 70),
    patch=st.sampled_from([3, 5, 7]),
    side=st.integers(1, 40),
    number=st.integers(2, 4),
)
def test_laws(seed: int, samples: int, stores: int, extent: int, patch: int, side: int, number: int) -> None:
    labels, positions = scattered(seed, samples, stores=stores, extent=extent)
    is_validation = positions[:, 2] % 5 == 0
    made = {"patch": patch, "side": side, "number": number, "seed": seed, "is_validation": is_validation}
    found = folds_of(labels, positions, **made)
    assert (found.reason is None) == bool(found.folds)
    assert found.side >= LEAST_SIDE * patch
    again = folds_of(labels, positions, **made)
    np.testing.assert_array_equal(found.group, again.group)
    for fold, other in zip(found.folds, again.folds, strict=True):
        np.testing.assert_array_equal(fold.training, other.training)
        np.testing.assert_array_equal(fold.held_out, other.held_out)
        assert not set(fold.training) & set(fold.held_out)
        assert len(np.unique(labels[fold.training])) > 1
        measured = fold.held_out[np.isin(fold.held_out, found.measured)]
        assert set(labels[measured]) <= set(labels[fold.training])
    if len(found.folds) == 1:
        (fold,) = found.folds
        np.testing.assert_array_equal(fold.held_out, np.flatnonzero(is_validation))
        np.testing.assert_array_equal(fold.training, np.flatnonzero(~is_validation))
        return
    held = np.concatenate([fold.held_out for fold in found.folds] or [np.arange(len(labels))])
    np.testing.assert_array_equal(np.sort(held), np.arange(len(labels)))
    for fold in found.folds:
        assert_far(positions, fold.training, fold.held_out, side=found.side, patch=patch)


def assert_far(
    positions: NDArray[np.int64], training: NDArray[np.int64], held: NDArray[np.int64], *, side: int, patch: int
) -> None:
    """No pixel of a held-out block is within patch - 1 of a training sample; those that were dropped are that close."""
    blocks = np.unique(np.column_stack([positions[held, :1], positions[held, 1:] // side]), axis=0)
    others = np.setdiff1d(np.arange(len(positions)), held)
    store, at = positions[others, None, 0], positions[others, None, 1:]  # (n, 1), (n, 1, 2) against blocks (b, 2)
    first = blocks[:, 1:] * side
    gap = np.maximum(np.maximum(first - at, at - (first + side - 1)), 0).max(axis=2)  # Chebyshev distance (n, b)
    near = ((gap < patch) & (store == blocks[:, 0])).any(axis=1)
    np.testing.assert_array_equal(training, others[~near])


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(0, 20))
def test_every_fold_gets_a_block_and_equal_blocks_are_spread_evenly(seed: int, folds: int, more: int) -> None:
    generator = np.random.default_rng(seed)
    table = generator.integers(0, 5, (folds + more, 3)) + np.array([1, 0, 0])
    assert set(assign(table, folds=folds, seed=seed)) == set(range(folds))
    equal = assign(np.full((folds * 4, 2), 7), folds=folds, seed=seed)
    assert np.bincount(equal).tolist() == [4] * folds


def test_a_rare_class_is_in_as_many_folds_as_it_has_blocks() -> None:
    table = np.full((30, 2), 100)
    table[:, 1] = 0
    table[[3, 4, 5], 1] = [9, 5, 4]
    found = assign(table, folds=3, seed=0)
    assert set(found[[3, 4, 5]]) == {0, 1, 2}
    assert not np.array_equal(found, assign(table, folds=3, seed=1))


def test_blocks_become_smaller_where_there_are_too_few_and_larger_where_patches_would_fill_them() -> None:
    positions = full(48, 48)
    labels = np.arange(len(positions)) % 3
    assert folds_of(labels, positions, side=24).side == 12  # 4 blocks are too few for three folds, 16 are enough
    assert folds_of(labels, positions, side=12).side == 12
    assert folds_of(labels, positions, side=2).side == LEAST_SIDE * 3
    assert folds_of(labels, positions, side=1000).side > 9


def test_class_in_one_block_is_named_and_not_measured() -> None:
    positions = full(48, 48)
    labels = np.arange(len(positions)) % 2
    labels[(positions[:, 1] < 5) & (positions[:, 2] < 5)] = 2
    found = folds_of(labels, positions)
    assert len(found.folds) == 3
    assert any("'rock' is in one block only" in note for note in found.notes)
    assert any("'rock': 25 samples are not compared" in note for note in found.notes)
    np.testing.assert_array_equal(found.measured, np.flatnonzero(labels != 2))


def test_few_samples_of_a_class_are_named() -> None:
    positions = full(48, 48)
    labels = np.arange(len(positions)) % 2
    labels[:: len(labels) // (FEW - 2)] = 2
    number = int((labels == 2).sum())
    assert number < FEW
    found = folds_of(labels, positions)
    assert [note for note in found.notes if "fewer than 20" in note] == [
        f"class 'rock' has {number} train and validation samples, fewer than 20: its results are uncertain"
    ]


def test_one_block_falls_back_to_the_given_split() -> None:
    positions = full(8, 8)
    labels = np.arange(64) % 3
    is_validation = positions[:, 1] > 5
    found = folds_of(labels, positions, is_validation=is_validation)
    (fold,) = found.folds
    np.testing.assert_array_equal(fold.held_out, np.flatnonzero(is_validation))
    np.testing.assert_array_equal(found.measured, fold.held_out)
    assert any("one block" in note and "validation samples alone" in note for note in found.notes)


@pytest.mark.parametrize("one_class", [False, True])
def test_one_block_without_validation_or_with_one_class_gives_no_trials(one_class: bool) -> None:
    positions = full(8, 8)
    is_validation = (positions[:, 1] > 5) & one_class
    labels = np.where(is_validation, 1, 0) if one_class else np.arange(64) % 3
    found = folds_of(labels, positions, is_validation=is_validation)
    assert found.folds == ()
    assert not len(found.measured)
    assert found.reason is not None
    assert ("of one class" if one_class else "no validation samples") in found.reason
