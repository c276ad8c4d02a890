"""Matching of scenes: quantiles of the complete scene, laws of the map, and independence of the tiling."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mibf.errors import InputError
from mibf.normalization import MATCHED_AT, BandScaling, match_quantiles, scaling_from_json
from pipeline.grid import Window
from pipeline.store.patch_store import PatchStore, check_matching, scaled_window
from pipeline.store.quantiles import QuantileSketch
from pipeline.store.scene_quantiles import LEAST_PIXELS, quantiles
from tests.support.commands import run
from tests.support.scenes import SmallScene
from tests.support.stores import SHARDS

seeds = st.integers(0, 10**6)


def of(values: NDArray[Any]) -> NDArray[np.float64]:
    """Quantiles (band, share) of values (band, y, x), by numpy."""
    return np.quantile(values.reshape(len(values), -1).astype(float), MATCHED_AT, axis=1, method="inverted_cdf").T


def drawn(seed: int, *, rounded: bool) -> NDArray[np.float32]:
    """Values (2, 40, 50) of a skewed distribution; rounded ones have many ties."""
    generator = np.random.default_rng(seed)
    values = generator.gamma(2, 3, (2, 40, 50)) * generator.uniform(0.1, 90) + generator.normal(0, 50)
    return np.float32(values.round() if rounded else values)


@given(seeds, seeds, st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_matching_never_decreases_and_stays_within_the_reference(one: int, two: int, first: bool, second: bool) -> None:
    values, reference = drawn(one, rounded=first), of(drawn(two, rounded=second))
    found = match_quantiles(values, scene=of(values), reference=reference)
    for own, matched, limits in zip(values, found, reference, strict=True):
        order = np.argsort(own.ravel())
        assert (np.diff(matched.ravel()[order]) >= 0).all()
        assert np.float32(limits[0]) <= matched.min() <= matched.max() <= np.float32(limits[-1])


@given(seeds, st.booleans())
@settings(max_examples=20, deadline=None)
def test_equal_distributions_are_left_alone(seed: int, rounded: bool) -> None:
    values = drawn(seed, rounded=rounded)
    assert np.array_equal(match_quantiles(values, scene=of(values), reference=of(values)), values)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_matched_values_have_the_reference_quantiles_and_matching_again_changes_nothing(seed: int) -> None:
    values, reference = drawn(seed, rounded=False), of(drawn(seed + 1, rounded=False))
    once = match_quantiles(values, scene=of(values), reference=reference)
    np.testing.assert_allclose(of(once), reference, rtol=1e-5, atol=1e-4)
    twice = match_quantiles(once, scene=of(once), reference=reference)
    np.testing.assert_allclose(twice, once, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("gain", "offset"), [(2.5, -300.0), (0.01, 7.0)])
def test_a_gain_and_offset_are_removed(gain: float, offset: float) -> None:
    values = drawn(4, rounded=False)
    changed = np.float32(values * gain + offset)
    found = match_quantiles(changed, scene=of(changed), reference=of(values))
    np.testing.assert_allclose(found, values, rtol=1e-3, atol=2e-2)


def test_constant_bands_ties_and_values_without_data() -> None:
    shares = len(MATCHED_AT)
    reference = np.stack([np.arange(shares, dtype=float)] * 3)
    half = np.where(np.arange(shares) < 18, 0.0, np.arange(shares))
    scene = np.stack([np.full(shares, 9.0), half, np.arange(shares) + 100.0])
    values = np.array([[[9, 9, np.nan]], [[0, -5, 34]], [[100, 134, np.nan]]], np.float32)
    found = match_quantiles(values, scene=scene, reference=reference)
    np.testing.assert_array_equal(found[0], [[17, 17, np.nan]])
    np.testing.assert_array_equal(found[1], [[8.5, 8.5, 34]])  # 0 holds the reference quantiles 0 to 17
    np.testing.assert_array_equal(found[2], [[0, 34, np.nan]])
    scaling = BandScaling(*np.float32([[0] * 3, [34] * 3, [17] * 3]), reference=reference)
    there = np.array([[True, True, False]])
    np.testing.assert_array_equal(scaling.apply(values, there, scene=scene)[:, 0, 2], np.float32([0.5] * 3))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_quantiles_of_counted_values(dtype: type[np.generic]) -> None:
    values = (drawn(3, rounded=True) + 500).astype(dtype)
    sketch = QuantileSketch(2, np.dtype(dtype))
    for part in np.array_split(values, 3, axis=1):
        sketch.add(part, np.ones(part.shape[1:], bool))
    found = quantiles({"optical": sketch})["optical"]
    np.testing.assert_allclose(found, of(values), rtol=2.0**-13)
    ends = [values.min(axis=(1, 2)), values.max(axis=(1, 2))]
    assert found is not None
    assert np.array_equal(np.array(found)[:, [0, -1]].T, ends)
    for band, own in zip(sketch.bands, found, strict=True):
        assert own[1:-1] == [band.quantile(share) for share in MATCHED_AT[1:-1]]


def test_too_few_pixels_are_not_matched() -> None:
    sketch = QuantileSketch(1, np.dtype(np.uint8))
    sketch.add(np.zeros((1, 1, LEAST_PIXELS - 1), np.uint8), np.ones((1, LEAST_PIXELS - 1), bool))
    assert quantiles({"radar": sketch}) == {"radar": None}
    sketch.add(np.zeros((1, 1, 1), np.uint8), np.ones((1, 1), bool))
    assert quantiles({"radar": sketch}) == {"radar": [[0.0] * len(MATCHED_AT)]}


def test_reference_survives_json_and_a_damaged_one_is_refused() -> None:
    scaling = BandScaling(*np.float32([[0, 1], [2, 3], [1, 2]]), reference=of(drawn(0, rounded=True)))
    stored = scaling.to_json()
    again = BandScaling.from_json(stored)
    assert again.reference is not None
    assert np.array_equal(again.reference, scaling.reference)
    assert "reference" not in BandScaling(*np.float32([[0], [2], [1]])).to_json()
    for damage in (stored["reference"][:1], [row[::-1] for row in stored["reference"]], [[np.nan] * 35] * 2):
        with pytest.raises(ValueError, match="reference quantiles"):
            BandScaling.from_json(stored | {"reference": damage})


def test_store_holds_the_quantiles_of_the_scene_and_windows_do_not_matter(scene: SmallScene) -> None:
    run(scene, SHARDS, "prepare.histogram_matching=[optical]")
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    window = Window(0, 0, *store.shape)
    values, valid = store.read_source("optical", window)
    assert set(store.quantiles) == {"optical"}
    own = store.quantiles["optical"]
    assert own is not None
    expected = np.quantile(values[:, valid].astype(float), MATCHED_AT, axis=1, method="inverted_cdf").T
    assert np.array_equal(own, expected)
    fitted = json.loads((scene.folder / "work/scaling.json").read_text())
    assert "reference" not in fitted["radar"]
    assert np.array_equal(fitted["optical"]["reference"], expected), "one training scene is its own reference"
    fitted["optical"]["reference"] = (expected * 1.5 + 7).tolist()
    scaling = scaling_from_json(fitted)
    entire = scaled_window(store, window, scaling, halo=3)[0]
    for y in range(0, store.shape[0], 47):
        part = Window(y, 31, min(47, store.shape[0] - y), 50)
        found = scaled_window(store, part, scaling, halo=3)[0]
        assert np.array_equal(found, entire[:, y : y + part.height + 6, 31 : 31 + 56])
    assert run(scene, SHARDS, "prepare.histogram_matching=[optical]", command="verify")["stores"][0]["intact"]
    check_matching(store, scaling)
    run(scene, SHARDS)
    with pytest.raises(InputError, match=r"add 'optical' to `prepare\.histogram_matching`"):
        check_matching(PatchStore(store.url), scaling)
