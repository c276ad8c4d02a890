"""Wilson's intervals against scipy's, and at the ends of what is possible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipeline.assessment.intervals import wilson


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_of_whole_numbers_equal_those_of_scipy(counts: tuple[int, int]) -> None:
    right, points = counts
    found, expected = wilson(right / points, points), binomtest(right, points).proportion_ci(method="wilson")
    assert (float(found.low), float(found.high)) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.floats(0, 1), st.floats(0.5, 1e9) | st.just(np.inf))
def test_interval_is_within_0_and_1_and_contains_the_estimate(p: float, points: float) -> None:
    found = wilson(p, points)
    assert 0 <= found.low <= p <= found.high <= 1


def test_interval_of_many_points_is_the_normal_one() -> None:
    found, error = wilson(0.3, 1e6), np.sqrt(0.3 * 0.7 / 1e6)
    assert [float(found.low), float(found.high)] == pytest.approx([0.3 - 1.959964 * error, 0.3 + 1.959964 * error], abs=1e-6)


def test_no_estimate_has_no_interval_and_what_is_known_no_width() -> None:
    assert np.isnan(wilson(np.nan, 0)).all()
    assert [float(bound) for bound in wilson(0.8, np.inf)] == [0.8, 0.8]
