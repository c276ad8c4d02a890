"""Wait for a condition in tests."""

from __future__ import annotations

import time
from collections.abc import Callable


def await_(ready: Callable[[], object], seconds: float = 300) -> None:
    """Wait until a condition holds; the limit leaves room for a machine that also runs other tests."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds:g} s"
        time.sleep(0.05)
