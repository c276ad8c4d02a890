"""Class priors: corrections, construction from counts, JSON and invalid proportions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mibf.class_priors import CHOICES, Priors
from mibf.errors import InputError


def test_class_absent_from_training_is_not_corrected() -> None:
    priors = Priors(natural=(0.5, 0.25, 0.25), trained=(0.5, 0.5, 0.0))
    assert priors.correction("natural") == pytest.approx((0, np.log(0.5), 0))
    assert priors.correction("uniform")[2] == 0
    assert all(np.isfinite(priors.correction(choice)).all() for choice in CHOICES)


def test_even_priors_give_zero_correction() -> None:
    assert all(Priors.even(7).correction(choice) == (0,) * 7 for choice in CHOICES)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
def test_priors_are_built_from_counts_and_round_trip_through_json(values: list[float]) -> None:
    priors = Priors.of(values, reversed(values))
    assert sum(priors.natural) == pytest.approx(1)
    assert Priors.from_json(json.loads(json.dumps(priors.to_json()))) == priors
    assert all(type(share) is float for share in priors.natural)


@pytest.mark.parametrize(
    ("natural", "trained", "message"),
    [
        ((0.5, 0.6), (0.5, 0.5), "natural class proportions .* sum to 1.1"),
        ((0.5, 0.5), (1.5, -0.5), "trained class proportions are 1.5, -0.5"),
        ((0.5, 0.5), (float("nan"), 1.0), "trained class proportions are nan, 1"),
        ((), (), "natural class proportions are none"),
        ((0.5, 0.5), (0.2, 0.3, 0.5), "2 natural and 3 trained"),
        ((1.0, 0.0), (0.5, 0.5), "class 2 of 2 has proportion 0.5 in training but no training pixels"),
    ],
)
def test_invalid_class_shares_raise(natural: tuple[float, ...], trained: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Priors(natural, trained)


@pytest.mark.parametrize("values", [[0, 0], [], [-1, 2], [float("inf"), 1], [float("inf"), float("-inf")]])
def test_counts_that_cannot_be_normalized_raise(values: list[float]) -> None:
    with pytest.raises(InputError, match="natural counts or weights"):
        Priors.of(values, [1, 1])
