"""Encoding of products: resolution, rounding, nodata and the documented data types."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch
from hypothesis import example, given
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


def reference(layer: Product, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The encoding as NumPy computes it."""
    if layer.dtype == "float32":
        return values.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        codes = np.clip(np.rint(values.astype(np.float64) / layer.scale), 0, np.iinfo(layer.dtype).max - 1)
    return np.where(np.isnan(codes), layer.nodata, codes).astype(layer.dtype)


#: Bits of zero, negative zero, infinities, NaNs, and the smallest and largest numbers.
SPECIAL = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF, 0x00000001, 0x7F7FFFFF, 0xFF7FFFFF]


def assert_encoded(layer: Product, values: np.ndarray[Any, Any]) -> None:
    found, wanted = layer.stored(layer.codes(torch.from_numpy(values))), reference(layer, values)
    assert found.dtype == wanted.dtype == layer.dtype
    np.testing.assert_array_equal(found, wanted)


@given(st.sampled_from(MEASURES), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30))
@example(MEASURES[0], SPECIAL)
def test_torch_encodes_every_float32_as_numpy_does(layer: Product, bits: list[int]) -> None:
    assert_encoded(layer, np.array(bits, np.uint32).view(np.float32))


def test_torch_rounds_halves_and_ends_of_the_range_as_numpy_does() -> None:
    generator = np.random.default_rng(0)
    for layer in (m for m in MEASURES if m.dtype != "float32"):
        halves = ((np.arange(-2, np.iinfo(layer.dtype).max + 2) + 0.5) * layer.scale).astype(np.float32)
        near = np.concatenate([halves, np.nextafter(halves, np.float32(-1)), np.nextafter(halves, np.float32(1e9))])
        random = generator.integers(0, 2**32, 1 << 16, np.uint32).view(np.float32)
        values = np.concatenate([near, random, np.array(SPECIAL, np.uint32).view(np.float32)])
        assert_encoded(layer, values)
        assert_encoded(layer, values[: len(values) // 6 * 6].reshape(2, 3, -1))  # bands, rows, columns
        assert_encoded(layer, values[np.isfinite(values)].astype(np.float64))


def test_encoding_leaves_the_values_as_they_are() -> None:
    for dtype in (np.float32, np.float64):
        values = np.full((2, 3), 0.25, dtype)
        product("confidence").encode(values)
        assert (values == 0.25).all()


@given(st.integers(1, 64), st.integers(0, 2**32))
def test_bits_of_codes_are_those_of_the_unsigned_type(classes: int, seed: int) -> None:
    layer = product("prediction_set", classes=classes)
    wanted = np.random.default_rng(seed).integers(0, 2**classes, 5, np.uint64, endpoint=classes < 64)
    wanted = np.minimum(wanted, np.uint64(2**classes - 1))
    codes = torch.from_numpy(wanted.view(np.int64))
    np.testing.assert_array_equal(layer.stored(layer.bits(codes)), wanted.astype(layer.dtype))
