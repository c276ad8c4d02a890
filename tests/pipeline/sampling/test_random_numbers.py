"""Random numbers of many generators at a time: those of numpy, one generator after the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampling.random_numbers import uniform_numbers


@given(st.lists(st.integers(0, 2**70), min_size=1, max_size=6), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5))
def test_numbers_are_those_of_numpy(key: list[int], last: list[int]) -> None:
    expected = [np.random.default_rng([*key, i]).random(4) for i in last]
    assert (uniform_numbers(key, np.array(last), 4) == expected).all()
