"""Encoding of products: resolution, rounding, nodata and the documented data types."""

from __future__ import annotations

from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.maps.products import MapDtype, Product, product

#: Every measure in every data type.
MEASURES = [
    product(name, dtype)
    for dtype in get_args(MapDtype)
    for name in ("confidence", "probabilities", "entropy", "mutual_information", "kl", "gate")
]


@given(st.sampled_from(MEASURES), st.lists(st.floats(0, 6.3) | st.just(float("nan")), min_size=1, max_size=20))
def test_encoded_values_round_trip_to_half_a_step_and_nan_stays_nodata(layer_product: Product, values: list[float]) -> None:
    codes = layer_product.encode(values)
    assert codes.dtype == layer_product.dtype
    found, wanted = layer_product.decode(codes), np.array(values)
    is_nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(found), is_nan)
    np.testing.assert_array_equal(layer_product.present(codes), ~is_nan)
    step = np.float32(6.3) * 2**-23 if layer_product.dtype == "float32" else layer_product.scale
    last = np.inf if layer_product.dtype == "float32" else (layer_product.nodata - 1) * layer_product.scale
    within = ~is_nan & (wanted <= last)
    assert (np.abs(found - wanted)[within] <= step / 2 + 1e-12).all()
    np.testing.assert_array_equal(layer_product.encode(found), codes)


@given(st.sampled_from(MEASURES), st.floats(0, 1e6), st.floats(0, 1e6))
def test_encoding_is_monotonic_and_never_gives_nodata(layer_product: Product, one: float, other: float) -> None:
    codes = layer_product.encode(sorted([one, other]))
    assert codes[0] <= codes[1]
    assert layer_product.present(codes).all()


def test_halves_round_to_even_and_products_have_the_documented_encoding() -> None:
    np.testing.assert_array_equal(product("kl").encode([0.25, 0.75, 1.25, np.inf, -1.0]), [2, 8, 12, 65534, 0])
    for name, dtype, wanted in [
        ("confidence", "uint16", ("uint16", 65535, 1e-4, "")),
        ("gate", "uint8", ("uint8", 255, 0.004, "")),
        ("entropy", "uint8", ("uint8", 255, 0.025, "nat")),
        ("mutual_information", "uint16", ("uint16", 65535, 1e-4, "nat")),
        ("kl", "uint16", ("uint16", 65535, 0.1, "nat")),
        ("class", "float32", ("uint8", 255, 1.0, "")),
        ("second_class", "uint16", ("uint8", 255, 1.0, "")),
    ]:
        layer_product = product(name, dtype)
        assert (layer_product.dtype, layer_product.nodata, layer_product.scale, layer_product.unit) == wanted
    assert product("kl", "uint8") == product("kl", "float32")
    assert [product("sources", sources=n).dtype for n in (2, 8, 9, 16)] == ["uint8", "uint8", "uint16", "uint16"]
