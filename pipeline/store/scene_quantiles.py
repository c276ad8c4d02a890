"""Quantiles of the valid pixels of a scene, kept in its store's attributes.

Those of all pixels match its bands to the training distribution: every reader matches with the same values, whatever window
it reads. The rule itself is `mibf.normalization.match_quantiles`. Those of windows spread over the scene are compared with
the training data (`pipeline.maps.drift`), without reading pixels.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import zarr

from mibf.normalization import MATCHED_AT
from pipeline.grid import Window, windows
from pipeline.io import zarr_store
from pipeline.parallel.executor import Executor
from pipeline.store.patch_store import QUANTILES, VALUES, PatchStore
from pipeline.store.quantiles import QuantileSketch, merge
from pipeline.store.template import CHUNK

#: Version of the quantiles and of the matching. Only results with matched sources become stale when it changes.
MATCHING_VERSION = 1
#: Minimum number of valid pixels; a source with fewer in a scene is not matched there, since its tails are unknown.
LEAST_PIXELS = 1000

#: Maximum number of windows of `CHUNK` x `CHUNK` pixels that represent a scene: 4.2 million pixels.
WINDOWS = 256
#: Prefix of a source's name in sketches of the values in these windows. Names of sources have no slash.
SPREAD = "spread/"

#: Quantiles (band, `MATCHED_AT`) by source; None where too few pixels are valid.
Quantiles = dict[str, list[list[float]] | None]


@dataclass(frozen=True)
class _Task:
    """The arguments that all shards share."""

    url: str
    sources: tuple[str, ...]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)


def sketch_scene(
    executor: Executor, url: str, sources: Sequence[str], *, each: Callable[[int], None] = lambda _: None
) -> dict[str, QuantileSketch]:
    """Count all valid values of some sources of a store; `each` is called with 1 after every shard."""
    store = PatchStore(url)
    task = _Task(url, tuple(sources))
    return executor.reduce(_sketch_shard, task, windows(store.shape, store.shard), each, merge) or {}


def _sketch_shard(task: _Task, shard: Window) -> tuple[int, dict[str, QuantileSketch]]:
    """Return one, the number of shards counted, and a shard's values by source."""
    store, found = PatchStore(task.url), {}
    for name in task.sources:
        found[name] = QuantileSketch(store.source(name).bands, store.array(f"sources/{name}").dtype)
        found[name].add(*store.read_source(name, shard))
    return 1, found


def quantiles(sketches: Mapping[str, QuantileSketch]) -> Quantiles:
    """Return the quantiles of counted sources; None for one with fewer than `LEAST_PIXELS` valid pixels."""
    return {
        name: [band.quantiles(MATCHED_AT).tolist() for band in sketch.bands]
        if min(band.pixels for band in sketch.bands) >= LEAST_PIXELS
        else None
        for name, sketch in sketches.items()
    }


def write_quantiles(target: zarr_store.ChecksumStore, found: Quantiles) -> None:
    """Write quantiles to the attributes of a store."""
    zarr.open_group(store=target, mode="r+").attrs[QUANTILES] = found


def references(sketches: Mapping[str, QuantileSketch]) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Return the quantiles (band, `MATCHED_AT`) of a training distribution, for every source with enough pixels."""
    return {name: np.array(found) for name, found in quantiles(sketches).items() if found is not None}


def spread_windows(shape_yx: tuple[int, int], most: int = WINDOWS) -> list[Window]:
    """Select up to `most` of a grid's `CHUNK`-sided windows, spread evenly: some of the rows, and some windows of each.

    Rows and columns are subsampled equally, so that neither direction is favoured.
    """
    high, wide = (-(-size // CHUNK) for size in shape_yx)
    rows = min(high, max(1, round(math.sqrt(most * high / wide))), most)
    columns = min(wide, most // rows)
    rows = min(high, most // columns)
    corners = ((y * CHUNK, x * CHUNK) for y in _spread_positions(high, rows) for x in _spread_positions(wide, columns))
    return [Window(y, x, min(CHUNK, shape_yx[0] - y), min(CHUNK, shape_yx[1] - x)) for y, x in corners]


def spread_windows_in(shard: Window, shape_yx: tuple[int, int]) -> list[Window]:
    """Select the spread windows of a grid that are in one of its shards."""
    rows, columns = (range(part.start, part.stop) for part in shard.slices)
    return [window for window in spread_windows(shape_yx) if window.y in rows and window.x in columns]


def _spread_positions(size: int, number: int) -> list[int]:
    """Select `number` of the positions 0 to size - 1: the midpoints of equal parts."""
    return [(2 * i + 1) * size // (2 * number) for i in range(number)]


def write_values(target: zarr_store.ChecksumStore, spread: Mapping[str, QuantileSketch]) -> None:
    """Write the quantiles of the values in the spread windows to the attributes of a store; None for a band without any.

    `spread` has a sketch by the name of each source.
    """
    zarr.open_group(store=target, mode="r+").attrs[VALUES] = {
        name: [band.quantiles(MATCHED_AT).tolist() if band.pixels else None for band in sketch.bands]
        for name, sketch in spread.items()
    }
