"""Quantiles of all valid pixels of a scene, from which its bands are matched to the training distribution.

They are computed once, from the complete store, and kept in its attributes: every reader matches with the same values,
whatever window it reads. The rule itself is `mibf.normalization.match_quantiles`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import zarr

from mibf.normalization import MATCHED_AT
from pipeline.grid import Window, windows
from pipeline.io import zarr_store
from pipeline.parallel.executor import Executor
from pipeline.store.patch_store import QUANTILES, PatchStore
from pipeline.store.quantiles import QuantileSketch, merge

#: Version of the quantiles and of the matching. Only results with matched sources become stale when it changes.
MATCHING_VERSION = 1
#: Minimum number of valid pixels; a source with fewer in a scene is not matched there, since its tails are unknown.
LEAST_PIXELS = 1000

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
