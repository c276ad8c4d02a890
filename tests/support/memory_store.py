"""In-memory patch store whose pixels contain their own positions, and samplers that read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from mibf.bundle.classes import ClassName
from mibf.normalization import BandScaling, Scaling
from mibf.training.batch import Batch
from pipeline.codes import UNLABELLED
from pipeline.grid import Window, reflected, windows
from pipeline.sampling.sampler import Sampler
from pipeline.store.template import CHUNK, StoredSource

PATCH = 5


class MemoryStore:
    """In-memory store that counts reads; each pixel of the first source contains its own position in the grid."""

    url = "/memory/scene.zarr"
    classes = tuple(ClassName(i, str(i), "#000000") for i in (3, 1, 7))

    def __init__(self, labels: np.ndarray, *, scales: tuple[int, ...] = (1, 2), unreadable: Window | None = None) -> None:
        self.labels, self.shape, self.unreadable = labels, labels.shape, unreadable
        self.sources = tuple(StoredSource(f"source {s}", 2, "exclude", s) for s in scales)
        self.reads: Counter[Window] = Counter()
        self.values = {}
        for source in self.sources:
            rows, columns = (size * source.scale for size in self.shape)
            place = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
            self.values[source.name] = np.stack([place, np.random.default_rng(0).random(place.shape, np.float32)])

    def windows_with_samples(self, _: str) -> list[tuple[Window, np.ndarray]]:
        found = []
        for window in windows(self.shape, CHUNK):
            ids = self.labels[window.slices]
            counts = np.array([(ids == c.id).sum() for c in self.classes])
            found += [(window, counts)] if counts.any() else []
        return found

    def samples(self, window: Window) -> dict[str, np.ndarray]:
        self.reads[window] += 1
        return dict.fromkeys(("train", "validation"), self.labels[window.slices])

    def read_source(
        self, name: str, window: Window, *, halo: int = 0, random: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        del random
        if window == self.unreadable:
            raise OSError("checksum mismatch")
        s = next(source.scale for source in self.sources if source.name == name)
        rows, columns = (
            reflected((start - halo) * s, (start + size + halo) * s, whole * s)
            for start, size, whole in zip((window.y, window.x), (window.height, window.width), self.shape, strict=True)
        )
        values = self.values[name][:, rows[:, None], columns]
        return values, np.ones(values.shape[1:], bool)


def plain_scaling(store: MemoryStore) -> Scaling:
    """Return a scaling that only multiplies values by a power of two."""
    bands = BandScaling(low=np.zeros(2, np.float32), high=np.float32([2**24, 1]), fill=np.zeros(2, np.float32))
    return {source.name: bands for source in store.sources}


def make_sampler(store: Any, **more: Any) -> Sampler:
    """Return a sampler of the training subset; `more` are fields of `Sampler`."""
    return Sampler([store], plain_scaling(store), PATCH, more.pop("subset", "train"), **more)


def scattered_labels(shape: tuple[int, int], shares: Iterable[float], *, seed: int = 0) -> np.ndarray:
    """Return random labels of classes 3, 1 and 7, each on the given share of the pixels."""
    shares = list(shares)
    ids = np.random.default_rng(seed).choice([3, 1, 7, UNLABELLED], size=shape, p=[*shares, 1 - sum(shares)])
    return ids.astype(np.uint8)


def places(batch: Batch) -> np.ndarray:
    """Return the position of each sample (y * columns + x), read from the centre of its first source's patch."""
    return np.rint(batch.sources[0][:, 0, PATCH // 2, PATCH // 2] * 2.0**24).astype(np.int64)


def batch_bytes(batches: Iterable[Batch]) -> list[bytes]:
    """Return the content of each batch, for comparison."""
    return [b"".join(np.ascontiguousarray(x).tobytes() for x in (*b.sources, b.labels)) for b in batches]
