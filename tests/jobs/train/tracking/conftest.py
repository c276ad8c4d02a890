"""Fixtures of the metric trackers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs.runtime.progress import take_warnings


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    take_warnings()
    yield
    take_warnings()
