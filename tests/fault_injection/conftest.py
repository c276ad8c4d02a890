"""Order of the fault-injection tests."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the rehearsal, which takes as long as several other tests, so that they run beside it."""
    items.sort(key=lambda item: item.get_closest_marker("rehearsal") is None)
