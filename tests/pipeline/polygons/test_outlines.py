"""Regions have the same valid outlines and sums for any windows, and cover exactly their pixels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import rasterize

from pipeline.polygons import NODATA
from pipeline.polygons.grow import Connectivity
from pipeline.polygons.outlines import Region, regions

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
MAPS = SHAPES.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([1, 1, 2, 255])))


def outlined(classes: Any, connectivity: Connectivity, side: int = 1024) -> list[Region]:
    values = np.arange(classes.size, dtype=np.int64).reshape(classes.shape) ** 2
    layers = (lambda window: values[window.slices],)
    return list(regions(lambda w: classes[w.slices], classes.shape, layers, connectivity, side=side))


@settings(max_examples=60, deadline=None)
@given(MAPS, st.sampled_from([4, 8]), st.integers(1, 7))
def test_regions_are_the_same_for_any_windows(classes: Any, connectivity: Connectivity, side: int) -> None:
    def counted(found: list[Region]) -> Counter[Any]:
        return Counter((r.class_id, r.pixels, r.sums, shapely.to_wkb(r.outline)) for r in found)

    assert counted(outlined(classes, connectivity, side)) == counted(outlined(classes, connectivity))


@settings(max_examples=50, deadline=None)
@given(MAPS, st.sampled_from([4, 8]), st.integers(2, 13))
def test_outlines_are_valid_and_cover_their_pixels(classes: Any, connectivity: Connectivity, side: int) -> None:
    found = outlined(classes, connectivity, side)
    assert all(region.outline.is_valid for region in found)
    kinds = {"Polygon"} if connectivity == 4 else {"Polygon", "MultiPolygon"}
    assert {region.outline.geom_type for region in found} <= kinds
    assert all(region.outline.area == region.pixels for region in found)
    shapes = [(region.outline, region.class_id) for region in found] or [(shapely.box(-2, -2, -1, -1), 1)]
    np.testing.assert_array_equal(rasterize(shapes, classes.shape, fill=int(NODATA), dtype=np.uint8), classes)
    bends = shapely.simplify([region.outline for region in found], 0)
    assert shapely.get_num_coordinates(bends).sum() == sum(shapely.get_num_coordinates(r.outline) for r in found)


@pytest.mark.parametrize(("connectivity", "count"), [(4, 4), (8, 2)])
def test_pixels_that_share_a_corner_are_connected_with_connectivity_8(connectivity: Connectivity, count: int) -> None:
    found = outlined(np.array([[1, 2], [2, 1]], np.uint8), connectivity, side=1)
    assert len(found) == count
    assert {region.outline.geom_type for region in found} == ({"Polygon"} if connectivity == 4 else {"MultiPolygon"})


def test_map_without_data_has_no_regions() -> None:
    assert outlined(np.full((5, 7), NODATA), 4, side=3) == []
