"""Block splits: patches of different subsets never overlap. Added labels change neither validation nor test pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.codes import UNLABELLED
from pipeline.grid import Window, windows
from pipeline.scenes.split import (
    AddedLabels,
    AddedSplit,
    Blocks,
    RandomSplit,
    Split,
    check_blocks,
    dilate,
    open_split_raster,
)
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


@dataclass(frozen=True)
class ArrayLabels:
    """Labels held in memory."""

    ids: np.ndarray
    notes: tuple[str, ...] = ()

    def read(self, window: Window) -> np.ndarray:
        return self.ids[window.slices]

    def unknown(self, window: Window) -> dict[float, int]:
        del window
        return {}


def random_labels(generator: np.random.Generator, share: float) -> np.ndarray:
    """Class ids 1 to 3 of 60 x 50 pixels, a share of them labelled."""
    ids = generator.integers(1, 4, (60, 50)).astype(np.uint8)
    return np.where(generator.random((60, 50)) < share, ids, np.uint8(UNLABELLED))


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_added_labels_train_and_change_nothing_else(seed: int, by_pixel: bool) -> None:
    generator = np.random.default_rng(seed)
    own, first, second = (ArrayLabels(random_labels(generator, share)) for share in (0.4, 0.3, 0.2))
    whole = Window(0, 0, 60, 50)
    table = generator.integers(1, 4, (5, 4)).astype(np.uint8)
    split: Split = Blocks(table, 13, 3, (60, 50))
    if by_pixel:
        split = RandomSplit(50, seed, 0, dict.fromkeys((1, 2, 3), (2**62, 2**63)))
    labels = AddedLabels(own, (first, second), split)
    merged = labels.read(whole)
    before = split.codes(whole, own.ids) * (own.ids != UNLABELLED)
    after = (AddedSplit(labels) if by_pixel else split).codes(whole, merged) * (merged != UNLABELLED)
    for code in (2, 3):  # validation and test: the same pixels with the same classes
        assert ((before == code) == (after == code)).all()
        assert (merged[after == code] == own.ids[before == code]).all()
    assert (after[before == 1] == 1).all()
    added = labels.read_added(whole)
    assert (added == np.where(second.ids == UNLABELLED, first.ids, second.ids)).all()  # later ones win
    changed = merged != own.ids
    assert (merged[changed] == added[changed]).all()
    assert (after[changed] == 1).all()
    assert changed.any()
    for window in windows((60, 50), 17):
        assert (labels.read(window) == merged[window.slices]).all()
