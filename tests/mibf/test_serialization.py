"""Values that JSON cannot represent become null."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mibf.serialization import without_nan

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(number: float) -> None:
    assert without_nan({"a": [number, (1.5, number)], "b": {"c": number}}) == {"a": [None, [1.5, None]], "b": {"c": None}}


@given(VALUES)
def test_result_is_strict_json_and_changes_nothing_else(value: Any) -> None:
    found = without_nan(value)
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert without_nan(found) == found
    if "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value):
        assert found == value


def test_argument_is_not_modified() -> None:
    value = {"a": [math.inf]}
    without_nan(value)
    assert value == {"a": [math.inf]}
