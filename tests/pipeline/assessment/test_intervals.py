"""Intervals against scipy's, and the rule that chooses among them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipeline.assessment.intervals import clopper_pearson, interval


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_binomial_intervals_equal_those_of_scipy(counts: tuple[int, int]) -> None:
    right, points = counts
    p = right / points
    low, high = clopper_pearson(right, points)
    exact = binomtest(right, points).proportion_ci(method="exact")
    assert (float(low), float(high)) == pytest.approx((exact.low, exact.high), abs=1e-9)
    found = interval(p, np.sqrt(p * (1 - p) / points), points)
    method = "exact" if right in (0, points) else "wilson"
    expected = binomtest(right, points).proportion_ci(method=method)
    assert (float(found.low), float(found.high)) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.kind() == {"exact": "exact", "wilson": "Wilson"}[method]


@pytest.mark.parametrize(("p", "points", "kind"), [(0.5, 102, "normal"), (0.5, 98, "Wilson"), (0.02, 400, "Wilson")])
def test_normal_interval_is_used_for_enough_points_on_both_sides(p: float, points: int, kind: str) -> None:
    error = np.sqrt(p * (1 - p) / points)
    found = interval(p, error, points)
    assert found.kind() == kind
    if kind == "normal":
        assert float(found.high - found.low) == pytest.approx(2 * 1.959964 * error)


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(1, 1e6))
def test_interval_is_within_0_and_1_and_contains_the_estimate(p: float, error: float, points: float) -> None:
    found = interval(p, error, points)
    assert 0 <= found.low <= p + 1e-12
    assert p - 1e-12 <= found.high <= 1


def test_no_estimate_has_no_interval() -> None:
    found = interval(np.nan, np.nan, 0)
    assert found.kind() == "none"
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_census_has_no_width() -> None:
    found = interval(0.8, 0.0, 20)
    assert (float(found.low), float(found.high)) == (0.8, 0.8)
