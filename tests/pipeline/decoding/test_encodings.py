"""Encodings against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.decoding.encodings import alphaearth, decibels, tessera

INT8 = np.arange(-128, 128).astype(np.int8)


def test_every_int8_of_alphaearth_has_the_value_of_the_formula() -> None:
    found = alphaearth(INT8.reshape(4, 8, 8)).ravel()
    wanted = [math.copysign((v / 127.5) ** 2, v) if v else 0.0 for v in range(-128, 128)]
    assert found.dtype == np.float32
    assert found.tolist() == np.array(wanted, np.float32).tolist()
    assert alphaearth(INT8[::-2]).tolist() == found[::-2].tolist(), "any memory layout"


def test_tessera_is_the_product_in_float32_with_one_scale_or_one_per_band() -> None:
    stored = INT8.reshape(4, 8, 8)
    scales = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)
    assert (tessera(stored, scales) == stored.astype(np.float32) * scales).all()
    assert (tessera(stored, scales[:1]) == stored.astype(np.float32) * scales[:1]).all()
    assert tessera(stored, scales.astype(np.float64)).dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_decibels_are_ten_times_the_logarithm_and_not_finite_without_power(dtype: str) -> None:
    found = decibels(np.array([0, 1, 2, 10, 100], dtype))
    assert found.dtype == np.float32
    assert found[1:].tolist() == np.array([0, 10 * math.log10(2), 10, 20], np.float32).tolist()
    assert not np.isfinite(decibels(np.array([-1.0, 0.0], np.float32))).any()
