"""Derived bands equal numpy's arithmetic in float64; what is not finite anywhere on the way has no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decoding.derived import derived_band
from pipeline.decoding.expression import parse

NAMES = ("a", "b", "c")
SHAPE = (3, 4)


def python(text: str, bands: Mapping[str, np.ndarray]) -> np.ndarray:
    """The oracle: Python's own evaluation on float64 arrays."""
    functions = {name: getattr(np, name) for name in ("sqrt", "log", "abs", "minimum", "maximum")}
    wide: dict[str, Any] = {name: band.astype(np.float64) for name, band in bands.items()}
    with np.errstate(all="ignore"):
        return np.asarray(eval(text, {"__builtins__": {}}, functions | wide))  # text of this test


def extended(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.sampled_from(["2", "3", "0.5", "0", "-1"])).map(lambda t: f"({t[0]} ** {t[1]})"),
        inner.map(lambda t: f"-{t}"),
        st.tuples(st.sampled_from(["sqrt", "log", "abs"]), inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(st.sampled_from(["minimum", "maximum"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
    )


LEAVES = st.one_of(st.sampled_from(NAMES), st.sampled_from(["1", "2.5", "0", "1e-3"]).map(lambda n: f"({n} + 0 * a)"))
TEXTS = st.recursive(LEAVES, extended, max_leaves=8)
VALUES = st.lists(st.integers(-20, 20), min_size=36, max_size=36)


@given(TEXTS, VALUES, st.sampled_from(["int16", "float32", "float64"]))
def test_values_equal_numpy_where_every_result_is_finite(text: str, values: list[int], dtype: str) -> None:
    bands = dict(zip(NAMES, np.array(values, dtype).reshape(3, *SHAPE), strict=True))
    found, finite = derived_band(parse(text, NAMES), bands)
    with np.errstate(over="ignore"):
        wanted = python(text, bands).astype(np.float32)
    assert found.dtype == np.float32
    assert (found[finite] == wanted[finite]).all()
    assert np.isfinite(wanted[finite]).all()
    assert not finite[~np.isfinite(wanted)].any()


@given(TEXTS, VALUES, st.integers(0, 2), st.integers(0, 3))
def test_a_window_equals_the_same_part_of_the_whole(text: str, values: list[int], row: int, column: int) -> None:
    bands = dict(zip(NAMES, np.array(values, np.float32).reshape(3, *SHAPE) / np.float32(7), strict=True))
    node = parse(text, NAMES)
    whole, finite = derived_band(node, bands)
    part, there = derived_band(node, {name: band[row:, column:] for name, band in bands.items()})
    assert (there == finite[row:, column:]).all()
    assert part[there].tobytes() == whole[row:, column:][there].tobytes()


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("1 / a", [False, True, True]),
        ("0 * a / a", [False, True, True]),
        ("1 / (1 / a)", [False, True, True]),  # 0 in numpy
        ("minimum(1 / a, 5)", [False, True, True]),  # 5 in numpy
        ("(1 / a) ** 0", [False, True, True]),  # 1 in numpy
        ("sqrt(a - 1)", [False, True, True]),
        ("log(a)", [False, True, True]),
        ("(0 - a - 1) ** 0.5", [False, False, False]),
        ("a * 1e40", [True, False, False]),  # beyond float32
        ("1e300 ** a", [True, False, False]),
    ],
)
def test_division_by_zero_and_results_that_are_not_finite_are_no_data(text: str, valid: list[bool]) -> None:
    _, finite = derived_band(parse(text, ("a",)), {"a": np.array([[0, 1, 2]], np.uint8)})
    assert finite[0].tolist() == valid


def test_small_integers_do_not_overflow() -> None:
    bands = {"nir": np.array([[200]], np.uint8), "red": np.array([[250]], np.uint8)}
    found, _ = derived_band(parse("(nir - red) / (nir + red)", ("nir", "red")), bands)
    assert found[0, 0] == np.float32(-50 / 450)
