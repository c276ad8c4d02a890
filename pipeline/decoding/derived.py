"""Bands that are computed from the other bands of a source: pixel by pixel, and of terrain from a pixel's neighbors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decoding.expression import TERRAIN, Node, parse
from pipeline.decoding.terrain import Terrain

_UFUNCS: dict[str, Callable[..., Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "**": np.power, "negative": np.negative,
    "sqrt": np.sqrt, "log": np.log, "abs": np.abs, "minimum": np.minimum, "maximum": np.maximum,
}  # fmt: skip  # a table


def derived_band(
    node: Node, bands: Mapping[str, NDArray[Any]], terrain: Terrain | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Compute a band (y, x) from others of its source, in float64, and return it as float32.

    Functions of terrain need `terrain`, and values are theirs only where the window has a halo or the grid ends.

    Also return where it has a value: where no operation in it, not even an inner one, divides by zero or gives a result
    that is not finite, and float32 holds the result.
    """
    finite = np.ones(next(iter(bands.values())).shape, bool)
    with np.errstate(all="ignore"):  # such pixels have no data
        values = np.asarray(_computed(node, bands, finite, terrain), np.float32)
    finite &= np.isfinite(values)
    return values, finite


def derived_bands(
    names: tuple[str, ...],
    values: NDArray[Any],
    expressions: Sequence[tuple[str, str]],
    terrain: Terrain | None = None,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Return all bands of a source by name, read (band, y, x) or derived, and where (y, x) all derived ones have a value."""
    bands: dict[str, NDArray[Any]] = dict(zip(names, values, strict=True))
    valid = np.ones(values.shape[1:], bool)
    for name, text in expressions:
        bands[name], there = derived_band(parse(text, names), bands, terrain)
        valid &= there
    return bands, valid


def _computed(node: Node, bands: Mapping[str, NDArray[Any]], finite: NDArray[np.bool_], terrain: Terrain | None) -> Any:
    """The values of a node in float64; `finite` loses the pixels where they are not finite."""
    if isinstance(node, str):
        return bands[node].astype(np.float64)
    if isinstance(node, float):
        return np.float64(node)
    operands = [_computed(operand, bands, finite, terrain) for operand in node.operands]
    if node.symbol in TERRAIN:
        assert terrain is not None, "terrain functions need a grid"
        found = terrain.compute(node.symbol, *operands)
    else:
        found = _UFUNCS[node.symbol](*operands)
    finite &= np.isfinite(found)
    return found
