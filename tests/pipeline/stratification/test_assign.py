"""Assignment of blocks: every class is in every subset, and the result is that of the plain algorithm to the last bit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codes import SUBSETS, Subset
from pipeline.stratification.assign import assign_blocks
from pipeline.stratification.block_counts import BlockCounts


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_assigned_blocks_match_the_fractions_for_every_class(seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(50, 100, (12, 12, 3))
    codes = assign_blocks(counts, {"train": 0.5, "validation": 0.2, "test": 0.3}, seed=seed)
    assert (codes == assign_blocks(counts, {"train": 0.5, "validation": 0.2, "test": 0.3}, seed=seed)).all()
    for position, share in enumerate((0.5, 0.2, 0.3)):
        got = counts[codes == position + 1].sum(axis=0) / counts.sum(axis=(0, 1))
        assert np.abs(got - share).max() < 0.05


def test_rare_class_is_in_every_subset() -> None:
    counts = np.zeros((10, 10, 2), int)
    counts[..., 0] = 1000
    for place in ((1, 1), (5, 5), (8, 2)):
        counts[*place, 1] = 10
    codes = assign_blocks(counts, {"train": 0.5, "validation": 0.2, "test": 0.3}, seed=0)
    assert {int(codes[place]) for place in ((1, 1), (5, 5), (8, 2))} == {1, 2, 3}
    assert len(SUBSETS) == 3


SHARES: dict[Subset, float] = {"train": 0.5, "validation": 0.2, "test": 0.3}


def unevenness(counts: np.ndarray, codes: np.ndarray) -> tuple[int, float]:
    """Number of subsets that miss a class, and the mean share over classes of pixels that are in the wrong subset."""
    missing, wrong = 0, []
    for c in range(counts.shape[-1]):
        shares = [counts[codes == s + 1, c].sum() / counts[..., c].sum() for s in range(3)]
        missing += shares.count(0)
        wrong.append(sum(max(0.0, share - wanted) for share, wanted in zip(shares, SHARES.values(), strict=True)))
    return missing, float(np.mean(wrong))


@pytest.mark.parametrize("blocks", [4, 5, 7])
@pytest.mark.parametrize("classes", [1, 3])
def test_seed_changes_assignment_of_few_blocks_and_keeps_it_nearly_even(blocks: int, classes: int) -> None:
    counts = np.random.default_rng(blocks).integers(50, 2000, (blocks, classes))
    every = [unevenness(counts, np.array(codes)) for codes in product((1, 2, 3), repeat=blocks)]
    fewest = min(missing for missing, _ in every)
    least = sorted(wrong for missing, wrong in every if missing == fewest)
    drawn = [assign_blocks(counts, SHARES, seed=seed) for seed in range(20)]
    assert len({codes.tobytes() for codes in drawn}) >= 3
    for codes in drawn:
        missing, wrong = unevenness(counts, codes)
        assert missing == fewest
        assert wrong <= least[len(least) // 2], "in the more even half of all complete assignments"


def test_seed_0_assigns_blocks_as_plain_stratification_does() -> None:
    counts = np.random.default_rng(5).integers(0, 900, (4, 5, 3))
    counts[0, 1] = counts[3, 3] = 0
    codes = assign_blocks(counts, SHARES, seed=0)
    assert codes.tolist() == [[1, 1, 1, 1, 2], [1, 1, 1, 1, 3], [3, 3, 2, 1, 2], [1, 1, 3, 1, 1]]


def test_fractions_rounded_to_seven_digits_are_assigned() -> None:
    counts = np.random.default_rng(1).integers(0, 900, (9, 9, 2))
    counts[::2] = 0
    codes = assign_blocks(counts, dict.fromkeys(SUBSETS, 0.3333333), seed=0)
    got = [counts[codes == code].sum() / counts.sum() for code in (1, 2, 3)]
    assert got == pytest.approx([1 / 3] * 3, abs=0.02)


def plain(counts: np.ndarray, shares: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Iterative stratification, one block after the other: the subset of each block from 1; 0 without labels."""
    total = counts.sum(axis=0)
    wanted, left = shares[:, None] * total, total.astype(float)
    codes, waiting = np.zeros(len(counts), int), counts.sum(axis=1) > 0
    while waiting.any():
        rarest = int(np.where(left > 0.5, left, np.inf).argmin())
        block = min(np.flatnonzero(waiting), key=lambda b: (-counts[b, rarest], places[b]))
        need = wanted[:, rarest] / np.maximum(shares * total[rarest], 1e-9)
        best = np.nonzero(need >= need.max() - 1e-9)[0]
        subset = int(best[wanted[best].sum(axis=1).argmax()])
        codes[block], waiting[block] = subset + 1, False
        wanted[subset] -= counts[block]
        left -= counts[block]
    return codes


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 50, 9216]), st.floats(0, 1), st.sampled_from([0.2, 0.25, 1 / 3]))
@settings(max_examples=40, deadline=None)
def test_blocks_are_assigned_as_one_after_the_other(seed: int, most: int, density: float, share: float) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, most + 1, (60, 9)) * (generator.random((60, 9)) < density)
    shares = np.array([1 - 2 * share, share, share])
    drawn = np.random.default_rng(0)
    drawn.choice(3, size=60, p=shares / shares.sum())
    places = np.argsort(drawn.permutation(60))
    expected = plain(counts, shares, places)
    found = assign_blocks(counts, dict(zip(SUBSETS, shares.tolist(), strict=True)), seed=0)
    labelled = expected > 0
    assert (found[labelled] == expected[labelled]).all()


def test_blocks_of_several_grids_are_assigned_together() -> None:
    counts = np.random.default_rng(3).integers(0, 3, (12, 4, 3))
    parts = [BlockCounts.of(counts[:5]), BlockCounts.of(counts[5:])]
    for seed in (0, 1):
        together = assign_blocks(counts, SHARES, seed=seed)
        assert (assign_blocks(BlockCounts.joined(parts), SHARES, seed=seed) == together.ravel()).all()
