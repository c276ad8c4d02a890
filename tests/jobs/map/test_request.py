"""The tiles that a command asks for by default: all that are not done."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import get_args

import pytest

from jobs.map.request import TileRequest
from pipeline.maps.ledger import State


def test_default_request_is_every_tile_that_is_not_done() -> None:
    request = TileRequest()
    assert set(request.states) == set(get_args(State)) - {"done"}
    assert (request.tiles, request.max_attempts, request.backoff) == (None, None, 0)


def test_default_request_replaces_nothing() -> None:
    assert not TileRequest().restart
    assert not TileRequest().replace


def test_request_is_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        TileRequest().restart = True
