"""Block splits: patches of different subsets never overlap, and every class is in every subset."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.codes import SUBSETS, Subset
from pipeline.grid import Window, windows
from pipeline.scenes.split import Blocks, assign_blocks, check_blocks, dilate, open_split_raster
from tests.support.scenes import CRS, TRANSFORM, write_raster

GRID = GeoBox((60, 50), TRANSFORM, CRS)
shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@given(st.integers(0, 10**6), st.integers(5, 15), st.integers(0, 3), st.tuples(st.integers(8, 60), st.integers(8, 60)))
@settings(max_examples=60, deadline=None)
def test_patches_of_different_subsets_never_overlap(seed: int, patch: int, extra: int, shape: tuple[int, int]) -> None:
    patch += 1 - patch % 2
    margin = (patch - 1) // 2 + extra
    block = 2 * (2 * margin) + 1
    generator = np.random.default_rng(seed)
    table = generator.integers(1, 4, (-(-shape[0] // block), -(-shape[1] // block))).astype(np.uint8)
    split = Blocks(table, block, margin, shape).codes(Window(0, 0, *shape))
    for code in (1, 2, 3):
        # Patches overlap if their centres are less than `patch` pixels apart along both axes.
        near = dilate(np.pad(split == code, patch - 1), patch - 1)
        assert set(np.unique(split[near])) <= {0, code}


@given(st.integers(0, 10**6), shapes)
@settings(deadline=None)
def test_split_codes_do_not_depend_on_the_window(seed: int, shape: tuple[int, int]) -> None:
    table = np.random.default_rng(seed).integers(1, 4, (-(-shape[0] // 13), -(-shape[1] // 13))).astype(np.uint8)
    blocks = Blocks(table, 13, 3, shape)
    whole = blocks.codes(Window(0, 0, *shape))
    for window in windows(shape, 32):
        assert (blocks.codes(window) == whole[window.slices]).all()


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


def test_buffer_smaller_than_the_patch_is_refused() -> None:
    with pytest.raises(InputError, match="Use 6 or more"):
        check_blocks(block=96, buffer=5, patch=7)
    with pytest.raises(InputError, match="too small"):
        check_blocks(block=12, buffer=6, patch=7)
    check_blocks(block=13, buffer=6, patch=7)


@given(st.integers(0, 10**6), st.integers(0, 4))
@settings(deadline=None)
def test_near_any_equals_brute_force_search_of_the_square(seed: int, reach: int) -> None:
    mask = np.random.default_rng(seed).random((12, 15)) < 0.1
    found = dilate(mask, reach)
    for (y, x), value in np.ndenumerate(found):
        assert value == mask[y : y + 2 * reach + 1, x : x + 2 * reach + 1].any()


def test_split_raster_with_other_values_or_bands_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4, (1, 60, 50)).astype(np.uint8)
    path = write_raster(tmp_path / "s.tif", values, nodata=0)
    everywhere, labels = Window(0, 0, 60, 50), np.zeros((60, 50), np.uint8)
    assert (open_split_raster(str(path), GRID).codes(everywhere, labels) == values[0]).all()
    values[0, 0, 0] = 7
    with pytest.raises(InputError, match="has 2 bands; a split raster must have one band"):
        open_split_raster(str(write_raster(tmp_path / "two.tif", np.ones((2, 60, 50), np.uint8))), GRID)
    with pytest.raises(InputError, match="invalid values in a split raster: 7"):
        open_split_raster(str(write_raster(tmp_path / "t.tif", values)), GRID).codes(everywhere, labels)
