"""Composites of dates equal what numpy computes pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stac.composite import Composite, Kind, medoid, percentile
from pipeline.stac.masks import dilated


def observations(seed: int, dates: int, bands: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Values (D, B, y, x) with many equal ones, and validity (D, y, x)."""
    drawn = np.random.default_rng(seed)
    values = drawn.integers(0, 7, (dates, bands, 5, 6)) if dtype != "float64" else drawn.random((dates, bands, 5, 6))
    return values.astype(dtype), drawn.random((dates, 5, 6)) < 0.6


def of_pixels(values: np.ndarray, valid: np.ndarray, function: Any) -> np.ndarray:
    """Apply a function to the valid dates (n, B) of each pixel; 0 where there are none."""
    found = np.zeros(values.shape[1:])
    for y, x in np.ndindex(valid.shape[1:]):
        own = values[valid[:, y, x], :, y, x].astype(float)
        if len(own):
            found[:, y, x] = function(own)
    return found


def nearest_to_all(own: np.ndarray) -> np.ndarray:
    """The observation (B,) with the least sum of distances to the others."""
    distances = np.linalg.norm(own[:, None] - own[None], axis=2).sum(axis=1)
    return np.asarray(own[distances.argmin()])


ORACLES: dict[Kind, Any] = {
    "first": lambda own: own[0],
    "median": lambda own: np.median(own, axis=0),
    "mean": lambda own: own.mean(axis=0),
    "min": lambda own: own.min(axis=0),
    "max": lambda own: own.max(axis=0),
    "medoid": nearest_to_all,
}


@pytest.mark.parametrize("kind", ORACLES)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dates=st.integers(1, 9), bands=st.integers(1, 3))
def test_composite_equals_numpy_on_the_valid_dates_of_each_pixel(kind: Kind, seed: int, dates: int, bands: int) -> None:
    # The medoid of equal values, or of an even number of values of one band, is decided by rounding.
    is_medoid = kind == "medoid"
    values, valid = observations(seed, dates, bands + is_medoid, "float64" if is_medoid else "float32")
    found, there = Composite(kind).combine(values, valid)
    assert (there == valid.any(axis=0)).all()
    expected = of_pixels(values, valid, ORACLES[kind])
    assert found[:, there] == pytest.approx(expected[:, there], abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dates=st.integers(1, 9), q=st.floats(0, 100))
def test_percentile_equals_that_of_numpy(seed: int, dates: int, q: float) -> None:
    values, valid = observations(seed, dates, 2)
    found, there = percentile(values, valid, q), valid.any(axis=0)
    expected = of_pixels(values, valid, lambda own: np.percentile(own, q, axis=0))
    assert found[:, there] == pytest.approx(expected[:, there], abs=1e-5)


@pytest.mark.parametrize("kind", ["first", "min", "max", "medoid"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
def test_observed_values_keep_their_type(kind: Kind, dtype: str) -> None:
    values, valid = observations(0, 4, 2, dtype)
    composite = Composite(kind)
    found, there = composite.combine(values, valid)
    assert composite.keeps_dtype
    assert found.dtype == dtype
    assert (found[:, there] == of_pixels(values, valid, ORACLES[kind])[:, there]).all()


def test_medoid_is_an_observation_of_one_date_for_all_bands() -> None:
    values, valid = observations(3, 6, 3)
    chosen = medoid(values, valid)
    for y, x in zip(*np.nonzero(valid.any(axis=0)), strict=True):
        assert valid[chosen[y, x], y, x]


@pytest.mark.parametrize("pixels", [0, 1, 2, 5])
def test_dilation_reaches_all_pixels_within_the_distance(pixels: int) -> None:
    unclear = np.zeros((15, 17), bool)
    unclear[3, 4] = unclear[10, 16] = True
    rows, columns = np.indices(unclear.shape)
    near = [np.hypot(rows - y, columns - x) <= pixels for y, x in ((3, 4), (10, 16))]
    assert (dilated(unclear, pixels) == (near[0] | near[1])).all()
