"""Labels of two scenes are compared where their ground overlaps, on any two grids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyproj
import pytest
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.scenes import label_counts
from pipeline.scenes.label_counts import LabelGrid, count_shared
from tests.support.scenes import CRS, TRANSFORM


@dataclass(frozen=True)
class ArrayLabels:
    """Labels in memory."""

    ids: NDArray[np.uint8]
    notes: tuple[str, ...] = ()

    def read(self, window: Window) -> NDArray[np.uint8]:
        return self.ids[window.slices]

    def unknown(self, window: Window) -> dict[float, int]:
        raise NotImplementedError


def labelled(shape: tuple[int, int], *places: tuple[int, int]) -> LabelGrid:
    ids = np.full(shape, UNLABELLED, np.uint8)
    for place in places:
        ids[place] = 1
    return LabelGrid(ArrayLabels(ids), shape)


SHAPE = (60, 50)
GRID = GeoBox(SHAPE, TRANSFORM, CRS)


def test_scenes_that_touch_share_no_ground() -> None:
    everywhere = LabelGrid(ArrayLabels(np.ones(SHAPE, np.uint8)), SHAPE)
    for apart in (0, 1, -6e-9, -0.4):  # pixels; negative: an overlap
        beside = GeoBox(SHAPE, TRANSFORM * Affine.translation(50 + apart, 0), CRS)
        assert count_shared(everywhere, GRID, everywhere, beside, reach=8) == 0
    overlapping = GeoBox(SHAPE, TRANSFORM * Affine.translation(48, 0), CRS)
    assert count_shared(everywhere, GRID, everywhere, overlapping, reach=0) == 2 * 60
    assert count_shared(everywhere, GRID, everywhere, overlapping, reach=4) == 6 * 60


@pytest.mark.parametrize("reach", [0, 1, 4, 5, 8])
@pytest.mark.parametrize("side", [16, 1024])
def test_overlapping_scenes_are_compared_by_their_labels(monkeypatch: pytest.MonkeyPatch, reach: int, side: int) -> None:
    monkeypatch.setattr(label_counts, "SIDE", side)
    rng = np.random.default_rng(1)
    first, second = ([tuple(p) for p in rng.integers(0, 50, (30, 2)).tolist()] for _ in range(2))
    shifted = GeoBox(SHAPE, TRANSFORM * Affine.translation(20, 10), CRS)
    near = [any(max(abs(y - v - 10), abs(x - u - 20)) <= reach for v, u in second) for y, x in set(first)]
    assert count_shared(labelled(SHAPE, *first), GRID, labelled(SHAPE, *second), shifted, reach=reach) == sum(near)


def test_labels_are_compared_on_grids_of_other_crs_and_resolution() -> None:
    there = pyproj.Transformer.from_crs(CRS, "EPSG:4326", always_xy=True).transform
    left, top = there(*(TRANSFORM * (-10, -10)))
    fine = GeoBox((400, 400), Affine(3e-5, 0, left, 0, -2e-5, top), "EPSG:4326")
    for place in ((5, 5), (30, 25), (55, 45)):
        column, row = ~fine.affine * there(*(TRANSFORM * (place[1] + 0.5, place[0] + 0.5)))
        other = labelled((400, 400), (int(row), int(column)))
        assert count_shared(labelled(SHAPE, place), GRID, other, fine, reach=0) == 1
        assert count_shared(labelled(SHAPE, (place[0] - 4, place[1])), GRID, other, fine, reach=1) == 0
        assert count_shared(labelled(SHAPE, (place[0] - 4, place[1])), GRID, other, fine, reach=6) == 1


@pytest.mark.parametrize("turn", [0, 360, -360])
def test_scenes_across_180_degrees_are_compared(turn: int) -> None:
    """A scene across 180 degrees, and others: far away, on one side in another zone, and at another turn."""
    across = GeoBox((40, 40), Affine(0.01, 0, 179.8, 0, -0.01, 0.2), "EPSG:4326")
    one = LabelGrid(ArrayLabels(np.ones((40, 40), np.uint8)), (40, 40))
    turned = GeoBox((40, 40), Affine(0.01, 0, 180 + turn, 0, -0.01, 0.2), "EPSG:4326")
    assert count_shared(one, across, one, turned, reach=0) == count_shared(one, turned, one, across, reach=0) == 40 * 20
    far = GeoBox((40, 40), Affine(0.01, 0, 10 + turn, 0, -0.01, 0.2), "EPSG:4326")
    assert count_shared(one, across, one, far, reach=8) == count_shared(one, far, one, across, reach=8) == 0
    assert count_shared(one, GRID, one, across, reach=8) == count_shared(one, across, one, GRID, reach=8) == 0
    east = GeoBox((40, 40), Affine(1113, 0, 166021.44, 0, -1113, 22260), "EPSG:32601")  # from 180 degrees on
    assert count_shared(one, east, one, across, reach=0) == pytest.approx(20 * 40, abs=40)
    site = GeoBox((40, 40), TRANSFORM, 'LOCAL_CS["site grid",UNIT["metre",1]]')
    assert count_shared(one, site, one, across, reach=8) == count_shared(one, across, one, site, reach=8) == 0
