"""Sample sizes and allocations: printed values, and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mibf.errors import InputError
from pipeline.assessment.allocation import ALLOCATIONS, Allocation, allocate, needed_points, point_shares, variances

#: Olofsson et al. (2014), table 5.
PIXELS, ACCURACIES = [200_000, 150_000, 3_200_000, 6_450_000], [0.7, 0.6, 0.9, 0.95]


def test_equal_and_proportional_allocations_are_those_of_olofsson_2014() -> None:
    equal = allocate(PIXELS, point_shares(PIXELS, ACCURACIES, "equal"), 640, minimum=2)
    assert equal.tolist() == [160, 160, 160, 160]
    proportional = allocate(PIXELS, point_shares(PIXELS, ACCURACIES, "proportional"), 641, minimum=2)
    assert proportional.tolist() == [13, 10, 205, 413]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_needed_points_give_the_standard_error(allocation: Allocation) -> None:
    shares = point_shares(PIXELS, ACCURACIES, allocation)
    n = needed_points(PIXELS, ACCURACIES, shares, standard_error=0.02)
    pixels, within = np.array(PIXELS, float), variances(ACCURACIES)
    weights = pixels / pixels.sum()

    def error(points: float) -> float:
        own = shares * points
        return float(np.sqrt((weights**2 * within / own * (1 - own / pixels)).sum()))

    assert error(n) <= 0.02 < error(n - 1)


def test_neyman_needs_the_fewest_points() -> None:
    needed = {
        name: needed_points(PIXELS, ACCURACIES, point_shares(PIXELS, ACCURACIES, name), standard_error=0.01)
        for name in ALLOCATIONS
    }
    assert needed["neyman"] == min(needed.values())


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    st.integers(1, 2000),
    st.integers(2, 60),
    st.sampled_from(ALLOCATIONS),
    st.randoms(use_true_random=False),
)
def test_allocation_adds_up_within_minimum_and_size(
    pixels: list[int], points: int, minimum: int, allocation: Allocation, random: object
) -> None:
    size = np.array(pixels)
    floor = np.minimum(size, minimum)
    assume(floor.sum() <= points <= size.sum())
    accuracies = np.random.default_rng(random.randrange(2**32)).random(len(size))  # type: ignore[attr-defined]  # a Random
    found = allocate(size, point_shares(size, accuracies, allocation), points, minimum=minimum)
    assert found.sum() == points
    assert (found >= floor).all()
    assert (found <= size).all()


def test_unknown_and_extreme_accuracies_leave_no_stratum_without_points() -> None:
    shares = point_shares([100, 100, 100], [1.0, 0.0, np.nan], "neyman")
    assert (shares > 0.1).all()
    assert shares[2] == shares.max()


def test_too_few_points_for_the_minima_are_refused() -> None:
    with pytest.raises(InputError, match=r"30 points are too few for 25 in each of 2 strata, which take 50"):
        allocate([1000, 1000], np.array([0.5, 0.5]), 30, minimum=25)
    with pytest.raises(InputError, match="larger than its frame of 20 pixels"):
        allocate([10, 10], np.array([0.5, 0.5]), 30, minimum=2)
