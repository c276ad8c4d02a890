"""The position of a training run round-trips through JSON, and invalid JSON is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mibf.errors import InputError
from mibf.training.checkpoint import TrainingPosition


@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_position_round_trips_through_json(epoch: int, step: int) -> None:
    assert TrainingPosition.from_json(TrainingPosition(epoch, step).to_json()) == TrainingPosition(epoch, step)


@pytest.mark.parametrize(
    "value", [None, {}, [1, 2], {"epoch": 1}, {"epoch": -1, "step": 0}, {"epoch": 0.5, "step": 0}, {"epoch": 0, "step": "1"}]
)
def test_invalid_position_json_raises(value: Any) -> None:
    with pytest.raises(InputError, match="is not a training position"):
        TrainingPosition.from_json(value)
