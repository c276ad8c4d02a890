"""Generalized maps follow the stated rules, whatever the windows in which they are read."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.ndimage import label

from mibf.errors import InputError
from pipeline.areas.pixel_area import PixelArea
from pipeline.grid import Window
from pipeline.polygons import NODATA
from pipeline.polygons.generalize import Rules, generalize

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
MAPS = SHAPES.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([1, 2, 7, 255])))
RULES = st.builds(Rules, st.sampled_from([1, 3, 5]), st.integers(1, 9), st.just(0.0), st.sampled_from([4, 8]))


def result(classes: NDArray[np.uint8], rules: Rules, area: PixelArea | None = None, **sizes: int) -> NDArray[np.uint8]:
    rows, columns = classes.shape
    with TemporaryDirectory() as folder:
        read = generalize(lambda w: classes[w.slices], (rows, columns), rules, area, Path(folder), **sizes)
        return read(Window(0, 0, rows, columns))


def regions_of(classes: NDArray[np.uint8], connectivity: int) -> list[NDArray[np.bool_]]:
    """The regions of a map, each as a mask; by another library."""
    found = []
    for number in np.unique(classes[classes != NODATA]):
        labels, count = label(classes == number, np.ones((3, 3)) if connectivity == 8 else None)
        found += [labels == each for each in range(1, count + 1)]
    return found


@settings(max_examples=20, deadline=None)
@given(MAPS, RULES, st.integers(2, 7), st.integers(1, 3))
def test_result_is_the_same_for_any_windows(classes: Any, rules: Rules, side: int, layers: int) -> None:
    whole = result(classes, rules)
    np.testing.assert_array_equal(result(classes, rules, side=side, layers=layers), whole)


@settings(max_examples=40, deadline=None)
@given(MAPS, st.integers(2, 9), st.sampled_from([4, 8]))
def test_small_regions_remain_only_where_no_large_region_is_connected(classes: Any, size: int, connectivity: Any) -> None:
    found = result(classes, Rules(sieve=size, connectivity=connectivity))
    np.testing.assert_array_equal(found == NODATA, classes == NODATA)
    structure = np.ones((3, 3)) if connectivity == 8 else None
    for region in regions_of(found, connectivity):
        if region.sum() < size:
            land, _ = label(classes != NODATA, structure)
            around = land == land[region][0]
            np.testing.assert_array_equal(found[around], classes[around])  # all of it is as it was
            assert all(each.sum() < size for each in regions_of(np.where(around, found, NODATA), connectivity))
    for region in regions_of(classes, connectivity):
        if region.sum() >= size:
            np.testing.assert_array_equal(found[region], classes[region])


def test_each_pixel_of_a_removed_region_takes_the_class_most_common_at_its_edges() -> None:
    classes = np.array([[1, 1, 1, 2, 2], [1, 3, 3, 3, 2], [1, 1, 1, 2, 2]], np.uint8)
    expected = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [1, 1, 1, 2, 2]], np.uint8)
    np.testing.assert_array_equal(result(classes, Rules(sieve=4)), expected)


def test_tie_is_won_by_the_lower_class() -> None:
    classes = np.array([[5, 5, 5, 9, 2, 2, 2]], np.uint8)
    np.testing.assert_array_equal(result(classes, Rules(sieve=2)), [[5, 5, 5, 2, 2, 2, 2]])


def test_majority_keeps_a_pixels_own_class_in_a_tie_and_ignores_pixels_without_data() -> None:
    classes = np.array([[3, 3, 255], [7, 7, 255], [255, 255, 255]], np.uint8)
    np.testing.assert_array_equal(result(classes, Rules(majority=3)), classes)


def test_minimum_mapping_unit_is_an_area_on_the_ellipsoid() -> None:
    """At 60 degrees north, a pixel has about half the area of one at the equator."""
    grid = GeoBox((3, 600), Affine(0.1, 0, 0, 0, -30, 75), "EPSG:4326")
    classes = np.full((3, 600), 1, np.uint8)
    classes[:, 100:200] = 2
    area = PixelArea(grid)
    hectares = [float(area.read(Window(row, 0, 1, 100)).sum()) * area.hectares for row in range(3)]
    assert hectares[0] < hectares[1]
    lone = np.full((3, 600), 255, np.uint8)
    lone[0, 100:200] = lone[2, 100:200] = 2
    lone[0, 200:], lone[2, 200:] = 1, 1
    found = result(lone, Rules(minimum_hectares=(hectares[0] + hectares[2]) / 2), area)
    assert set(found[0, 100:200]) == ({1} if hectares[0] < hectares[2] else {2})
    assert set(found[2, 100:200]) == ({2} if hectares[0] < hectares[2] else {1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"majority": 2}, "--majority 2: must be an odd number"),
        ({"sieve": 0}, "--sieve 0"),
        ({"minimum_hectares": float("nan")}, "--minimum nan"),
        ({"connectivity": 6}, "--connectivity 6"),
    ],
)
def test_invalid_rules_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Rules(**values)
