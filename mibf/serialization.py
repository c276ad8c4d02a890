"""Convert values to what JSON can represent. No dependencies."""

from __future__ import annotations

import math
from typing import Any


def without_nan(value: Any) -> Any:
    """Replace every number of a JSON value that is not finite by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return value
