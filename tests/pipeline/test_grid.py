"""Windows, tiles, reflected edges and grids as JSON."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from mibf.inference.cell import CELL
from pipeline.grid import Tile, Window, grid_from_json, grid_to_json, reflected, tile_grid, windows
from tests.support.scenes import CRS, TRANSFORM

shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@given(shapes, st.integers(1, 40))
def test_windows_cover_every_pixel_once(shape: tuple[int, int], side: int) -> None:
    covered = np.zeros(shape, int)
    for window in windows(shape, side):
        covered[window.slices] += 1
        assert window.y % side == window.x % side == 0
    assert (covered == 1).all()


@given(shapes, st.sampled_from([64, 128, 192]))
def test_tiles_cover_every_pixel_once_and_start_at_cell_corners(shape: tuple[int, int], side: int) -> None:
    covered = np.zeros(shape, int)
    for tile in tile_grid("scene", shape, side):
        covered[tile.window.slices] += 1
        assert tile.window.y % CELL == tile.window.x % CELL == 0
    assert (covered == 1).all()


def test_tile_equality_is_scene_and_window() -> None:
    assert Tile("a", Window(0, 64, 64, 64)) == Tile("a", Window(0, 64, 64, 64))
    assert len({Tile("a", Window(0, 0, 8, 8)), Tile("a", Window(0, 0, 8, 8)), Tile("b", Window(0, 0, 8, 8))}) == 2


@given(st.integers(2, 30), st.integers(0, 29))
def test_reflected_indices_equal_numpy_reflect_padding(size: int, reach: int) -> None:
    reach = min(reach, size - 1)
    wanted = np.pad(np.arange(size), reach, mode="reflect")
    assert reflected(-reach, size + reach, size).tolist() == wanted.tolist()


def test_grid_round_trips_through_json() -> None:
    for crs in (CRS, None):
        grid = GeoBox((30, 20), TRANSFORM, crs)
        assert grid_from_json(grid_to_json(grid)) == grid
