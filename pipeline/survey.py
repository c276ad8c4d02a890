"""Look a filled store over, once: its samples, the patches that overlap, the values at training pixels.

One task a shard; what the tasks find is added up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.engine import Engine
from pipeline.fit import Sketch
from pipeline.grid import Window, windows
from pipeline.labels import UNLABELLED
from pipeline.split import SUBSETS, near_any
from pipeline.store import CHUNK, PatchStore, training_pixels


@dataclass
class Survey:
    """What was found in a store, or in a shard of it."""

    samples: NDArray[np.int32]  #: of each subset and class in each window: (subset, class, window y, window x)
    tests: int = 0  #: test samples
    overlapping: int = 0  #: those whose patch overlaps the patch of a training sample
    sketches: dict[str, Sketch] = field(default_factory=dict)  #: the values of each source at training samples

    @property
    def overlap(self) -> float:
        """The share of test samples whose patch overlaps that of a training sample; NaN without test samples."""
        return self.overlapping / self.tests if self.tests else float("nan")


def survey(engine: Engine, url: str, *, patch: int, each: Callable[[int], None] = lambda _: None) -> Survey:
    """Look a store over; `each` is called with the number of shards that were."""
    store = PatchStore(url)
    rows, columns = store.shape
    total = Survey(np.zeros((len(SUBSETS), len(store.classes), -(-rows // CHUNK), -(-columns // CHUNK)), np.int32))
    total.sketches = _sketches(store)

    def take(part: tuple[Window, Survey]) -> None:
        window, found = part
        y, x = window.y // CHUNK, window.x // CHUNK
        high, wide = found.samples.shape[2:]
        total.samples[..., y : y + high, x : x + wide] = found.samples
        total.tests += found.tests
        total.overlapping += found.overlapping
        for name, sketch in found.sketches.items():
            total.sketches[name].merge(sketch)
        each(1)

    engine.each(_survey_shard, (url, patch), windows(store.shape, store.shard), take)
    return total


def _sketches(store: PatchStore) -> dict[str, Sketch]:
    return {s.name: Sketch(s.bands, store.array(f"sources/{s.name}").dtype) for s in store.sources}


def _survey_shard(shared: tuple[str, int], shard: Window) -> tuple[Window, Survey]:
    url, patch = shared
    store = PatchStore(url)
    parts = [Window(shard.y + w.y, shard.x + w.x, w.height, w.width) for w in windows((shard.height, shard.width), CHUNK)]
    wide = -(-shard.width // CHUNK)
    found = Survey(np.zeros((len(SUBSETS), len(store.classes), len(parts) // wide, wide), np.int32))
    found.sketches = _sketches(store)
    samples = store.samples(shard)
    ids = [c.id for c in store.classes]
    trained = []
    for part in parts:
        place = (part.y - shard.y) // CHUNK, (part.x - shard.x) // CHUNK
        cut = np.s_[part.y - shard.y :, part.x - shard.x :]
        for position, subset in enumerate(SUBSETS):
            own = samples[subset][cut][: part.height, : part.width]
            found.samples[position, :, *place] = np.bincount(own.ravel(), minlength=256)[ids]
        if found.samples[0, :, *place].any():
            trained.append(part)
    test = samples["test"] != UNLABELLED
    if test.any():
        found.tests = int(test.sum())
        found.overlapping = int((test & _near_training(store, shard, patch - 1)).sum())
    for source in store.sources:
        for values in training_pixels(store, source, trained):
            found.sketches[source.name].add(values)
    return shard, found


def _near_training(store: PatchStore, window: Window, reach: int) -> NDArray[np.bool_]:
    """Where in a window a training sample lies within `reach` rows and columns."""
    rows, columns = store.shape
    y, x = max(0, window.y - reach), max(0, window.x - reach)
    bottom, right = min(rows, window.y + window.height + reach), min(columns, window.x + window.width + reach)
    training = store.samples(Window(y, x, bottom - y, right - x))["train"] != UNLABELLED
    before = (reach - (window.y - y), reach - (window.x - x))
    after = (reach - (bottom - window.y - window.height), reach - (right - window.x - window.width))
    return near_any(np.pad(training, ((before[0], after[0]), (before[1], after[1]))), reach)
