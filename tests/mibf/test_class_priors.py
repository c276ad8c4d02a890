"""Class priors: corrections and their damping, construction from counts, JSON and invalid proportions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mibf.class_priors import CHOICES, FULL_SUPPORT, Priors, PriorSetting, support
from mibf.errors import InputError


def test_class_absent_from_training_is_not_corrected() -> None:
    priors = Priors(natural=(0.5, 0.25, 0.25), trained=(0.5, 0.5, 0.0))
    assert priors.correction("natural") == pytest.approx((0, np.log(0.5), 0))
    assert priors.correction("uniform")[2] == 0
    assert all(np.isfinite(priors.correction(choice)).all() for choice in CHOICES)


def test_even_priors_give_zero_correction() -> None:
    assert all(Priors.even(7).correction(choice) == (0,) * 7 for choice in CHOICES)


def test_correction_that_raises_a_class_with_few_samples_equals_hand_computation() -> None:
    """Uniform priors of five classes: ln(0.2 / share) times sqrt(n / 100), of at most 1; lowered classes in full."""
    shares = (0.5, 0.3, 0.1, 0.06, 0.04)
    priors = Priors(shares, shares, support=(9, 400, 0, 25, 100))
    wanted = (-0.916291, -0.405465, 0.0, 0.5 * 1.203973, 1.609438)
    assert priors.correction("uniform") == pytest.approx(wanted, abs=1e-6)
    assert priors.damped("uniform") == (2, 3)
    assert priors.correction("trained") == priors.correction("natural") == (0,) * 5
    assert priors.damped("natural") == ()
    assert Priors(shares, shares).correction("uniform")[2] == pytest.approx(np.log(2))


@given(
    shares=st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=2, max_size=12),
    choice=st.sampled_from(CHOICES),
    data=st.data(),
)
def test_damping_keeps_the_direction_and_grows_weaker_with_samples(
    shares: list[tuple[float, float]], choice: PriorSetting, data: st.DataObject
) -> None:
    natural, trained = zip(*shares, strict=True)
    counts = data.draw(st.lists(st.integers(0, 300), min_size=len(shares), max_size=len(shares)))
    full = Priors.of(natural, trained).correction(choice)
    few, more = (
        Priors.of(natural, trained, support=tuple(n + added for n in counts)).correction(choice) for added in (0, 40)
    )
    assert all((f <= 0 and a == b == f) or 0 <= a <= b <= f for f, a, b in zip(full, few, more, strict=True))
    supported = [n >= FULL_SUPPORT for n in counts]
    assert all(a == f for f, a, enough in zip(full, few, supported, strict=True) if enough)


@pytest.mark.parametrize(
    ("training", "validation", "wanted"),
    [
        ([500, 40, 7], [60, 80, 0], (60, 40, 0)),
        ([500, 40, 7], [0, 0, 0], (500, 40, 7)),  # no validation subset
    ],
)
def test_support_is_the_smaller_number_of_samples(training: list[int], validation: list[int], wanted: Any) -> None:
    assert support(np.array(training), np.array(validation)) == wanted


def test_support_is_kept_in_json_and_omitted_where_unknown() -> None:
    priors = Priors((0.5, 0.5), (0.4, 0.6), support=(3, 200))
    assert priors.to_json() == {"natural": [0.5, 0.5], "trained": [0.4, 0.6], "support": [3, 200]}
    assert Priors.from_json(json.loads(json.dumps(priors.to_json()))) == priors
    assert Priors((0.5, 0.5), (0.4, 0.6)).to_json().keys() == {"natural", "trained"}


@pytest.mark.parametrize("wrong", [(1,), (1, 2, 3), (1, -1), (1, 2.5), (1, "many"), (1, True)])
def test_invalid_support_raises(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"samples per class that support the priors .* each of the 2 classes"):
        Priors((0.5, 0.5), (0.5, 0.5), support=wrong)


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
