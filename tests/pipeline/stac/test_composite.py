"""Composites of dates equal what numpy computes pixel by pixel."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import Window
from pipeline.stac import composite as composite_module
from pipeline.stac.composite import DATES_BYTES, Composite, Kind, combine_in_parts, medoid, parts, percentile, pixel_bytes
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


@pytest.mark.parametrize("dates", [10, 100, 400])
@pytest.mark.parametrize("bands", [1, 12])
@pytest.mark.parametrize("shape", [(512, 512), (1024, 1024), (1000, 37), (1, 900)])
def test_parts_cover_a_window_once_within_the_planned_bytes(dates: int, bands: int, shape: tuple[int, int]) -> None:
    pixel = pixel_bytes(dates, bands, np.dtype(np.uint16))
    seen = np.zeros(shape, int)
    for part in parts(Window(0, 0, *shape), pixel):
        assert part.height * part.width * pixel <= DATES_BYTES
        seen[part.slices] += 1
    assert (seen == 1).all()


def test_parts_of_a_shard_are_squares_and_no_smaller_than_needed() -> None:
    pixel = pixel_bytes(100, 2, np.dtype(np.uint16))
    assert {(part.height, part.width) for part in parts(Window(512, 0, 512, 512), pixel)} == {(256, 256)}
    assert list(parts(Window(3, 4, 512, 512), pixel_bytes(20, 2, np.dtype(np.uint16)))) == [Window(3, 4, 512, 512)]


@pytest.mark.parametrize("kind", [*ORACLES, "percentile"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("bands", [1, 3])
def test_memory_of_combining_is_as_planned_for_any_number_of_dates(
    kind: Kind, dtype: str, bands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, part, rows = 64, 128 << 10, 16 << 10
    monkeypatch.setattr(composite_module, "DATES_BYTES", part)
    monkeypatch.setattr(composite_module, "COMBINED_BYTES", rows)
    composite, observed = Composite(kind, 20 if kind == "percentile" else None), np.dtype(dtype)
    stored = observed if composite.keeps_dtype else np.dtype(np.float32)

    def read(date: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        shape = (window.height, window.width)
        return np.full((bands, *shape), date, observed), np.ones(shape, bool)

    for dates in (2, 12 if kind == "medoid" else 100):
        window = Window(0, 0, side, side)
        planned = part + composite_module.COMBINED_COPIES * rows
        tracemalloc.start()
        values, counts = combine_in_parts(
            composite, range(dates), read, window, bands=bands, observed=observed, dtype=stored
        )
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most - values.nbytes - counts.nbytes < planned


@pytest.mark.parametrize("pixels", [0, 1, 2, 5])
def test_dilation_reaches_all_pixels_within_the_distance(pixels: int) -> None:
    unclear = np.zeros((15, 17), bool)
    unclear[3, 4] = unclear[10, 16] = True
    rows, columns = np.indices(unclear.shape)
    near = [np.hypot(rows - y, columns - x) <= pixels for y, x in ((3, 4), (10, 16))]
    assert (dilated(unclear, pixels) == (near[0] | near[1])).all()
