"""Transitions between two published maps: counts, areas, and the raster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from jobs.bench.harness.class_map import write_class_map
from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.geotiff.tile_codec import TILE
from pipeline.publishing.class_map import ClassMap
from pipeline.transitions import count
from pipeline.transitions.count import count_transitions
from pipeline.transitions.raster import NODATA, transition_raster
from tests.support.published_maps import GEOGRAPHIC, LOCAL, UTM

BEFORE = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"))
AFTER = (ClassName(0, "forest", "#00ff00"), ClassName(1, "Dörfer", "#ff0000"), ClassName(7, "water", "#0000ff"))
RANDOM = np.random.default_rng(8)


def publish(folder: Path, grid: GeoBox, classes: Any, ids: NDArray[np.uint8]) -> ClassMap:
    return ClassMap.open(write_class_map(folder, grid, classes, lambda window: ids[window.slices]))


def pair(folder: Path, grid: GeoBox) -> tuple[ClassMap, ClassMap, NDArray[np.uint8], NDArray[np.uint8]]:
    before = RANDOM.choice(np.array([1, 2, 255], np.uint8), grid.shape)
    after = RANDOM.choice(np.array([0, 1, 7, 255], np.uint8), grid.shape)
    return publish(folder / "a", grid, BEFORE, before), publish(folder / "b", grid, AFTER, after), before, after


def test_classes_are_joined_by_name_and_all_pixels_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "WINDOW", 150)
    first, second, before, after = pair(tmp_path, UTM)
    found = count_transitions(first, second)
    assert found.classes == ("water", "forest", "Dörfer")
    ids = {"water": (1, 7), "forest": (2, 0), "Dörfer": (99, 1)}
    expected = [[((before == ids[a][0]) & (after == ids[b][1])).sum() for b in ids] for a in ids]
    np.testing.assert_array_equal(found.pixels, expected)
    assert found.only_first == ((before != 255) & (after == 255)).sum()
    assert found.only_second == ((before == 255) & (after != 255)).sum()
    assert found.changed_pixels == found.pixels.sum() - found.pixels[0, 0] - found.pixels[1, 1]
    assert sum(stratum.pixels for stratum in found.strata) == found.pixels.sum()
    # A pixel of 10 m at the central meridian of a UTM zone: the scale is 0.9996.
    np.testing.assert_allclose(found.hectares, found.pixels * 0.01 / 0.9996**2, rtol=1e-5)


def test_hectares_in_degrees_differ_by_latitude_and_are_unknown_without_a_crs(tmp_path: Path) -> None:
    first, second, _, _ = pair(tmp_path / "degrees", GEOGRAPHIC)
    found = count_transitions(first, second)
    each = found.hectares / found.pixels.clip(1)
    assert each[0, 0] == pytest.approx(111_200 * 0.01 * 71_500 * 0.01 / 1e4, rel=0.01)
    first, second, _, _ = pair(tmp_path / "none", LOCAL)
    assert np.isnan(count_transitions(first, second).hectares).all()


def test_raster_has_both_ids_in_a_number(tmp_path: Path) -> None:
    first, second, before, after = pair(tmp_path, GeoBox((2 * TILE + 8, 40), Affine(8, 6, 5e5, 6, -8, 5e6), "EPSG:32633"))
    output = tmp_path / "change.tif"
    with transition_raster(first, second, str(output)) as take:
        count_transitions(first, second, take=take)
    with rasterio.open(output) as dataset:
        expected = np.where((before == 255) | (after == 255), NODATA, before.astype(np.uint32) * 1000 + after)
        np.testing.assert_array_equal(dataset.read(1), expected)
        assert (dataset.nodata, dataset.transform) == (NODATA, first.grid.affine)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags(1)["to_1"] == "Dörfer"
        assert dataset.overviews(1)


@pytest.mark.parametrize(
    ("grid", "difference"),
    [
        (GeoBox((401, 300), UTM.affine, UTM.crs), "401 x 300 pixels"),
        (GeoBox((400, 300), UTM.affine * Affine.translation(0.5, 0), UTM.crs), "up to 0.5 pixels apart"),
        (GeoBox((400, 300), UTM.affine, "EPSG:32634"), "EPSG:32634"),
        (GeoBox((400, 300), UTM.affine, None), "none"),
    ],
    ids=["size", "place", "zone", "no CRS"],
)
def test_maps_on_different_grids_are_refused_with_the_difference(grid: GeoBox, difference: str, tmp_path: Path) -> None:
    ids = np.ones(UTM.shape, np.uint8)
    first = publish(tmp_path / "a", UTM, BEFORE, ids)
    second = publish(tmp_path / "b", grid, BEFORE, np.ones(grid.shape, np.uint8))
    with pytest.raises(InputError, match=r"not on the same grid.*" + difference + r".*copy the other's `grid` section"):
        count_transitions(first, second)


def test_ambiguous_names_and_undescribed_classes_are_refused(tmp_path: Path) -> None:
    ids = np.full(UTM.shape, 2, np.uint8)
    first = publish(tmp_path / "a", UTM, BEFORE, ids)
    twice = publish(tmp_path / "b", UTM, (*BEFORE, ClassName(3, "water", "#000000")), ids)
    with pytest.raises(InputError, match="two classes are called 'water'"):
        count_transitions(first, twice)
    unknown = publish(tmp_path / "c", UTM, BEFORE, np.full(UTM.shape, 9, np.uint8))
    with pytest.raises(InputError, match="has class 9, which its item does not describe"):
        count_transitions(first, unknown)
