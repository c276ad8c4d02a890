"""Block splits: patches of different subsets never overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.grid import Window, windows
from pipeline.scenes.split import Blocks, check_blocks, dilate, open_split_raster
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
