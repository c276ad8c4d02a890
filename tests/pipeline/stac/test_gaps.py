"""Periods without an observation are interpolated as `numpy.interp` does, filled, or excluded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stac.gaps import close_gaps
from pipeline.stac.periods import Gaps, calendar_periods, intervals

SHAPE = (4, 5)


def drawn(seed: int, periods: int, bands: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    values = generator.normal(1000, 500, (periods, bands, *SHAPE)).astype(np.float32)
    counts = (generator.random((periods, *SHAPE)) < share) * generator.integers(1, 300, (periods, *SHAPE))
    values[np.broadcast_to(counts[:, None] == 0, values.shape)] = np.float32(1e9)  # has no meaning
    return values, counts.astype(np.uint16)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 3), st.floats(0, 1), st.booleans())
def test_interpolation_is_that_of_numpy(seed: int, periods: int, bands: int, share: float, regular: bool) -> None:
    months = calendar_periods("month", ["2024-01-01", f"2024-{periods:02}-01"], where="")
    uneven = intervals([f"{2000 + 2**n}-03-01/{2000 + 2**n}-0{3 + n}-05" for n in range(periods)])
    own = months if regular else uneven
    values, counts = drawn(seed, periods, bands, share)
    found = values.reshape(-1, *SHAPE).copy()
    valid = close_gaps(found, counts, own, "interpolate")
    assert (valid == (counts > 0).any(axis=0)).all()
    at = np.array([period.middle for period in own])
    for y, x in zip(*np.nonzero(valid), strict=True):
        known = counts[:, y, x] > 0
        for band in range(bands):
            expected = np.interp(at, at[known], values[known, band, y, x].astype(np.float64)).astype(np.float32)
            observed = found.reshape(values.shape)[:, band, y, x]
            np.testing.assert_allclose(observed, expected, rtol=1e-6)
            assert (observed[known] == expected[known]).all(), "what was observed stays"


@pytest.mark.parametrize("gaps", ["exclude", "fill"])
def test_values_of_observed_periods_stay(gaps: Gaps) -> None:
    values, counts = drawn(0, 3, 2, 0.7)
    months = calendar_periods("month", ["2024-01-01", "2024-03-01"], where="")
    found = values.reshape(-1, *SHAPE).copy()
    valid = close_gaps(found, counts, months, gaps)
    there = counts > 0
    assert (valid == (there.all(axis=0) if gaps == "exclude" else there.any(axis=0))).all()
    known = np.broadcast_to(there[:, None], values.shape)
    assert (found.reshape(values.shape)[known] == values[known]).all()
    if gaps == "fill":
        assert (found.reshape(values.shape)[~known] == 0).all()
