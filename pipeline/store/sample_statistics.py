"""Collect statistics of a built store: its samples, overlapping patches, and training values that were not counted yet.

One task per shard; their results are added up.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.codes import CODES, SUBSETS
from pipeline.grid import Window, windows
from pipeline.parallel.executor import Executor
from pipeline.scenes.split import dilate
from pipeline.store.patch_store import PatchStore
from pipeline.store.quantiles import QuantileSketch, merge
from pipeline.store.scene_quantiles import SPREAD, spread_windows_in
from pipeline.store.template import CHUNK

#: A shard's windows are read one by one if fewer than one in this many are needed.
FEW_SAMPLES = 4


@dataclass
class StoreStatistics:
    """Statistics of a store, or of one shard, whose sketches are returned beside it."""

    samples: NDArray[np.int32]  #: number per subset, class and window: (subset, class, window y, window x)
    tests: int = 0  #: number of test samples
    overlapping: int = 0  #: those whose patch overlaps that of a training sample
    #: Values of each source at training samples, and in spread windows, by its name and that with `SPREAD` before it.
    sketches: dict[str, QuantileSketch] = field(default_factory=dict)

    def pop_spread(self) -> dict[str, QuantileSketch]:
        """Remove and return the values of each source in spread windows, by its name."""
        names = [name for name in self.sketches if name.startswith(SPREAD)]
        return {name.removeprefix(SPREAD): self.sketches.pop(name) for name in names}

    @property
    def overlap(self) -> float:
        """Share of test samples whose patch overlaps that of a training sample; NaN without test samples."""
        return self.overlapping / self.tests if self.tests else float("nan")


def collect_statistics(
    executor: Executor,
    url: str,
    *,
    patch: int,
    sketched: Collection[Window] = (),
    each: Callable[[int], None] = lambda _: None,
) -> StoreStatistics:
    """Collect the statistics of a store; `each` is called with the number of shards completed since its last call.

    Values of the shards in `sketched` were counted before, and are not counted again.
    """
    store = PatchStore(url)
    rows, columns = store.shape
    total = StoreStatistics(np.zeros((len(SUBSETS), len(store.classes), -(-rows // CHUNK), -(-columns // CHUNK)), np.int32))

    def take(part: tuple[Window, StoreStatistics]) -> None:
        window, found = part
        y, x = window.y // CHUNK, window.x // CHUNK
        high, wide = found.samples.shape[2:]
        total.samples[..., y : y + high, x : x + wide] = found.samples
        total.tests += found.tests
        total.overlapping += found.overlapping
        each(1)

    task = _Task(url, patch, frozenset(sketched))
    found = executor.reduce(_shard_statistics, task, windows(store.shape, store.shard), take, merge)
    total.sketches = found or _sketches(store)
    return total


def _sketches(store: PatchStore) -> dict[str, QuantileSketch]:
    return {
        prefix + s.name: QuantileSketch(s.bands, store.array(f"sources/{s.name}").dtype)
        for prefix in ("", SPREAD)
        for s in store.sources
    }


@dataclass(frozen=True)
class _Task:
    """The arguments that all shards share."""

    url: str
    patch: int
    sketched: frozenset[Window]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  #: distinguishes calls for the same URL


@lru_cache(maxsize=2)
def _store(url: str, token: str) -> PatchStore:
    """The store as all tasks of a call read it, one per process, so that its arrays are opened once."""
    del token
    return PatchStore(url)


def _shard_statistics(task: _Task, shard: Window) -> tuple[tuple[Window, StoreStatistics], dict[str, QuantileSketch]]:
    store = _store(task.url, task.token)
    reach = task.patch - 1
    rows, columns = store.shape
    y, x = max(0, shard.y - reach), max(0, shard.x - reach)
    bottom, right = min(rows, shard.y + shard.height + reach), min(columns, shard.x + shard.width + reach)
    ids, codes = store.labelled(Window(y, x, bottom - y, right - x))
    own = np.s_[shard.y - y : shard.y - y + shard.height, shard.x - x : shard.x - x + shard.width]
    found, sketches = StoreStatistics(_counts(store, ids[own], codes[own])), _sketches(store)
    train = codes == CODES["train"]
    test = codes[own] == CODES["test"]
    found.tests = int(test.sum())
    if found.tests and train.any():
        missing_rows = (reach - (shard.y - y), reach - (bottom - shard.y - shard.height))
        missing_columns = (reach - (shard.x - x), reach - (right - shard.x - shard.width))
        found.overlapping = int((test & dilate(np.pad(train, (missing_rows, missing_columns)), reach)).sum())
    train = train[own]
    for part in [] if shard in task.sketched else _worth_reading(shard, train):
        trained = train[part.y - shard.y :, part.x - shard.x :][: part.height, : part.width]
        for source in store.sources:
            sketches[source.name].add_at(*store.read_source(source.name, part), trained)
    for part in [] if shard in task.sketched else spread_windows_in(shard, store.shape):
        for source in store.sources:
            sketches[SPREAD + source.name].add(*store.read_source(source.name, part))
    return (shard, found), sketches


def _counts(store: PatchStore, ids: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Count a shard's samples (subset, class, window y, window x) from class ids and subset codes (y, x; 0: no sample)."""
    high, wide = (-(-size // CHUNK) for size in ids.shape)
    rows, columns = np.nonzero(codes)
    window_index = rows // CHUNK * wide + columns // CHUNK
    kind = (codes[rows, columns].astype(np.int64) - 1) * 256 + ids[rows, columns]
    counts = np.bincount(kind * (high * wide) + window_index, minlength=len(SUBSETS) * 256 * high * wide)
    classes = [c.id for c in store.classes]
    return counts.reshape(len(SUBSETS), 256, high, wide)[:, classes].astype(np.int32)


def _worth_reading(shard: Window, train: NDArray[np.bool_]) -> list[Window]:
    """The shard itself, or its windows with training samples if they are few: every read has a fixed cost."""
    parts = [Window(shard.y + w.y, shard.x + w.x, w.height, w.width) for w in windows((shard.height, shard.width), CHUNK)]
    trained = [w for w in parts if train[w.y - shard.y :, w.x - shard.x :][: w.height, : w.width].any()]
    return trained if len(trained) * FEW_SAMPLES < len(parts) else [shard]
