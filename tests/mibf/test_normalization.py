"""Normalization: limits to 0 and 1, clipping, constant bands, pixels without data, and the JSON form."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from mibf.normalization import BandScaling, scaling_from_json, scaling_to_json


def make(low: list[float], high: list[float], fill: list[float]) -> BandScaling:
    return BandScaling(*(np.array(values, np.float32) for values in (low, high, fill)))


def line(*bands: list[float]) -> NDArray[np.float32]:
    """Bands of one row of pixels, (band, 1, x)."""
    return np.array(bands, np.float32)[:, None]


def test_limits_become_0_and_1_and_values_beyond_are_clipped() -> None:
    scaling = make([10, -1], [20, 1], [15, 0])
    values = line([10, 15, 20, 5, 99], [-1, 0, 1, -9, 9])
    found = scaling.apply(values, np.ones((1, 5), bool))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, line([0, 0.5, 1, 0, 1], [0, 0.5, 1, 0, 1]))


def test_constant_band_is_0_everywhere() -> None:
    scaling = make([7, 0], [7, 2], [7, 1])
    assert scaling.constant.tolist() == [True, False]
    found = scaling.apply(line([7, 8, -3], [0, 1, 2]), np.ones((1, 3), bool))
    np.testing.assert_array_equal(found, line([0, 0, 0], [0, 0.5, 1]))


@pytest.mark.parametrize("hidden", [0.0, 1e30, np.nan])
def test_pixels_without_data_take_the_fill_value_whatever_they_hold(hidden: float) -> None:
    scaling = make([0, 0], [4, 4], [1, 3])
    found = scaling.apply(line([2, hidden], [2, hidden]), np.array([[True, False]]))
    np.testing.assert_array_equal(found, line([0.5, 0.25], [0.5, 0.75]))
    np.testing.assert_array_equal(found[:, 0, 1], scaling.filled)


def test_argument_is_not_modified() -> None:
    values = line([1, 2, 3])
    make([0], [2], [1]).apply(values, np.ones((1, 3), bool))
    np.testing.assert_array_equal(values, line([1, 2, 3]))


def test_json_form_gives_the_same_limits_to_the_last_bit() -> None:
    scaling = {"optical": make([0.1, 1 / 3], [1e-7, 2**24 + 2], [0.1, 0.2]), "radar": make([-3], [3], [0])}
    found = scaling_from_json(json.loads(json.dumps(scaling_to_json(scaling))))
    assert list(found) == list(scaling)
    for name, bands in scaling.items():
        for limit in ("low", "high", "fill"):
            read = getattr(found[name], limit)
            assert read.dtype == np.float32
            assert read.tobytes() == getattr(bands, limit).tobytes()
