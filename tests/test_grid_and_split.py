"""Windows, mirrored edges, and the law that patches of different subsets share no ground."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from mibf.cell import CELL
from mibf.errors import InputError
from pipeline.grid import Window, grid_from_json, grid_to_json, reflected, windows
from pipeline.split import SUBSETS, Blocks, assign_blocks, check_blocks, near_any
from pipeline.tiles import Tile, tiles
from tests.conftest import CRS, TRANSFORM

shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@given(shapes, st.integers(1, 40))
def test_windows_cover_every_pixel_once(shape: tuple[int, int], side: int) -> None:
    covered = np.zeros(shape, int)
    for window in windows(shape, side):
        covered[window.slices] += 1
        assert window.y % side == window.x % side == 0
    assert (covered == 1).all()


@given(shapes, st.sampled_from([64, 128, 192]))
def test_tiles_cover_every_pixel_once_and_begin_on_a_cells_corner(shape: tuple[int, int], side: int) -> None:
    covered = np.zeros(shape, int)
    for tile in tiles("scene", shape, side):
        covered[tile.window.slices] += 1
        assert tile.window.y % CELL == tile.window.x % CELL == 0
    assert (covered == 1).all()


def test_a_tile_is_its_place_whoever_makes_it() -> None:
    assert Tile("a", Window(0, 64, 64, 64)) == Tile("a", Window(0, 64, 64, 64))
    assert len({Tile("a", Window(0, 0, 8, 8)), Tile("a", Window(0, 0, 8, 8)), Tile("b", Window(0, 0, 8, 8))}) == 2


@given(st.integers(2, 30), st.integers(0, 29))
def test_reflection_is_numpys(size: int, reach: int) -> None:
    reach = min(reach, size - 1)
    wanted = np.pad(np.arange(size), reach, mode="reflect")
    assert reflected(-reach, size + reach, size).tolist() == wanted.tolist()


def test_a_grid_survives_its_json() -> None:
    for crs in (CRS, None):
        grid = GeoBox((30, 20), TRANSFORM, crs)
        assert grid_from_json(grid_to_json(grid)) == grid


@given(st.integers(0, 10**6), st.integers(5, 15), st.integers(0, 3), st.tuples(st.integers(8, 60), st.integers(8, 60)))
@settings(max_examples=60, deadline=None)
def test_patches_of_two_subsets_never_overlap(seed: int, patch: int, extra: int, shape: tuple[int, int]) -> None:
    patch += 1 - patch % 2
    margin = (patch - 1) // 2 + extra
    block = 2 * (2 * margin) + 1
    generator = np.random.default_rng(seed)
    table = generator.integers(1, 4, (-(-shape[0] // block), -(-shape[1] // block))).astype(np.uint8)
    split = Blocks(table, block, margin, shape).codes(Window(0, 0, *shape))
    for code in (1, 2, 3):
        # Patches overlap when centres are less than `patch` apart along both axes.
        near = near_any(np.pad(split == code, patch - 1), patch - 1)
        assert set(np.unique(split[near])) <= {0, code}


@given(st.integers(0, 10**6), shapes)
@settings(deadline=None)
def test_a_split_does_not_depend_on_the_window_it_is_read_in(seed: int, shape: tuple[int, int]) -> None:
    table = np.random.default_rng(seed).integers(1, 4, (-(-shape[0] // 13), -(-shape[1] // 13))).astype(np.uint8)
    blocks = Blocks(table, 13, 3, shape)
    whole = blocks.codes(Window(0, 0, *shape))
    for window in windows(shape, 32):
        assert (blocks.codes(window) == whole[window.slices]).all()


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_blocks_meet_the_fractions_for_every_class(seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(50, 100, (12, 12, 3))
    codes = assign_blocks(counts, {"train": 0.5, "validation": 0.2, "test": 0.3}, seed=seed)
    assert (codes == assign_blocks(counts, {"train": 0.5, "validation": 0.2, "test": 0.3}, seed=seed)).all()
    for position, share in enumerate((0.5, 0.2, 0.3)):
        got = counts[codes == position + 1].sum(axis=0) / counts.sum(axis=(0, 1))
        assert np.abs(got - share).max() < 0.05


def test_a_rare_class_reaches_every_subset() -> None:
    counts = np.zeros((10, 10, 2), int)
    counts[..., 0] = 1000
    for place in ((1, 1), (5, 5), (8, 2)):
        counts[*place, 1] = 10
    codes = assign_blocks(counts, {"train": 0.5, "validation": 0.2, "test": 0.3}, seed=0)
    assert {int(codes[place]) for place in ((1, 1), (5, 5), (8, 2))} == {1, 2, 3}
    assert len(SUBSETS) == 3


def test_a_buffer_below_the_patch_is_refused() -> None:
    with pytest.raises(InputError, match="Use 6 or more"):
        check_blocks(block=96, buffer=5, patch=7)
    with pytest.raises(InputError, match="too small"):
        check_blocks(block=12, buffer=6, patch=7)
    check_blocks(block=13, buffer=6, patch=7)


@given(st.integers(0, 10**6), st.integers(0, 4))
@settings(deadline=None)
def test_near_any_is_a_search_of_the_square(seed: int, reach: int) -> None:
    mask = np.random.default_rng(seed).random((12, 15)) < 0.1
    found = near_any(mask, reach)
    for (y, x), value in np.ndenumerate(found):
        assert value == mask[y : y + 2 * reach + 1, x : x + 2 * reach + 1].any()
