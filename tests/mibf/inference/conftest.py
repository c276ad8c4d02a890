"""Fixtures of the inference tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mibf.inference import cell, dense


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make cells of 8 x 8 pixels, for what takes long; return their side."""
    side = 8
    cell._places.cache_clear()
    for module in (cell, dense):
        monkeypatch.setattr(module, "CELL", side)
    yield side
    cell._places.cache_clear()
