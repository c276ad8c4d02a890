"""Batches of patches for one worker, cut from stores as they are read.

The order of an epoch's samples is a pure function of (seed, epoch, rank): windows are shuffled over
the scenes and dealt to the workers; as many as fit `BUFFER_BYTES` are held at a time, and their
samples are shuffled together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mibf.scaling import Scaling
from mibf.training import Batch
from pipeline.grid import Window
from pipeline.labels import UNLABELLED
from pipeline.split import Subset
from pipeline.store import CHUNK, PatchStore

#: Bytes of scaled windows that are shuffled together, for each worker.
BUFFER_BYTES = 64 << 20


def scaled_window(store: PatchStore, window: Window, scaling: Scaling, *, halo: int) -> list[NDArray[np.float32]]:
    """Every source's window with halo, (band, height + 2 halo, width + 2 halo), scaled to [0, 1].

    What the network sees of a scene, in training and mapping alike: mirrored beyond the scene's edges, the
    training median where a source has no data.
    """
    return [scaling[source.name].apply(*store.read_source(source.name, window, halo=halo)) for source in store.sources]


@dataclass(frozen=True)
class _Place:
    """A window of a store that holds `samples` samples of the subset."""

    store: PatchStore
    window: Window
    samples: int


@dataclass(frozen=True)
class Sampler:
    """The samples of one subset of some scenes, for worker `rank` of `workers`."""

    stores: Sequence[PatchStore]
    scaling: Scaling
    patch: int
    subset: Subset
    rank: int = 0
    workers: int = 1

    def _places(self) -> list[_Place]:
        return [
            _Place(store, window, int(count.sum()))
            for store in self.stores
            for window, count in store.windows_with_samples(self.subset)
        ]

    def samples(self) -> int:
        """Samples of the subset over all workers."""
        return sum(place.samples for place in self._places())

    def steps(self, batch: int) -> int:
        """Training batches of an epoch on every worker alike, at `batch` samples a worker."""
        return max(1, self.samples() // (batch * self.workers))

    def shuffled(self, *, batch: int, seed: int, epoch: int) -> Iterator[Batch]:
        """An epoch for training: `steps(batch)` full batches in a random order.

        Windows hold unequal numbers of samples, so a worker whose windows give out begins with them again
        and one with samples left over leaves them, other ones in each epoch.
        """
        dealer = np.random.default_rng([seed, epoch])  # the same on every worker
        places = self._places()
        order = dealer.permutation(len(places))
        own = [places[i] for i in order[self.rank :: self.workers]] or [places[i] for i in order]
        generator = np.random.default_rng([seed, epoch, self.rank])
        batches = self._endless(own, batch, generator)
        for _ in range(self.steps(batch)):
            yield next(batches)

    def _endless(self, places: Sequence[_Place], batch: int, generator: np.random.Generator) -> Iterator[Batch]:
        group = self._group_size()
        rest: list[Batch] = []  # samples that do not fill a batch yet
        while True:
            for start in range(0, len(places), group):
                held = _Held(self, places[start : start + group])
                order = generator.permutation(len(held.labels))
                waiting = sum(len(part.labels) for part in rest)
                for begin in _cuts(len(order), batch, waiting):
                    part = held.batch(order[begin[0] : begin[1]])
                    if sum(len(p.labels) for p in rest) + len(part.labels) < batch:
                        rest.append(part)
                        continue
                    yield _joined([*rest, part])
                    rest = []

    def in_order(self, *, batch: int) -> Iterator[Batch]:
        """Each of this worker's samples once, in the order of the grid, for validation and testing."""
        for place in self._places()[self.rank :: self.workers]:
            held = _Held(self, [place])
            for start in range(0, len(held.labels), batch):
                yield held.batch(np.arange(start, min(start + batch, len(held.labels))))

    def _group_size(self) -> int:
        bands = sum(source.bands for source in self.stores[0].sources)
        window_bytes = 4 * bands * (CHUNK + self.patch - 1) ** 2
        return max(1, BUFFER_BYTES // window_bytes)


class _Held:
    """Some windows in memory with the positions and labels of their samples."""

    def __init__(self, sampler: Sampler, places: Sequence[_Place]) -> None:
        self.patch = sampler.patch
        halo = sampler.patch // 2
        side = CHUNK + 2 * halo
        store = sampler.stores[0]
        # (window, rows, columns, bands): a patch's rows lie together, as convolutions like them
        self.windows = [np.zeros((len(places), side, side, s.bands), np.float32) for s in store.sources]
        position = np.zeros(256, np.int64)
        position[[c.id for c in store.classes]] = np.arange(len(store.classes))
        where, labels = [], []
        for number, place in enumerate(places):
            ids = place.store.samples(place.window)[sampler.subset]
            rows, columns = np.nonzero(ids != UNLABELLED)
            where.append(np.stack([np.full(len(rows), number), rows, columns]))
            labels.append(position[ids[rows, columns]])
            sources = scaled_window(place.store, place.window, sampler.scaling, halo=halo)
            for held, values in zip(self.windows, sources, strict=True):
                held[number, : values.shape[1], : values.shape[2]] = values.transpose(1, 2, 0)
        self.where = np.concatenate(where, axis=1)
        self.labels = np.concatenate(labels)

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """The chosen samples, their patches (B, C, p, p) laid out channels last."""
        number, rows, columns = self.where[:, chosen]
        sources = []
        for held in self.windows:
            view = np.lib.stride_tricks.sliding_window_view(held, (self.patch, self.patch), axis=(1, 2))
            view = view.transpose(0, 1, 2, 4, 5, 3)  # (window, row, column, p, p, C)
            sources.append(view[number, rows, columns].transpose(0, 3, 1, 2))
        return Batch(tuple(sources), self.labels[chosen])


def _cuts(samples: int, batch: int, waiting: int) -> Iterator[tuple[int, int]]:
    """Cut a range of samples so that the first piece completes the batch that is waiting."""
    begin = 0
    while begin < samples:
        end = min(samples, begin + batch - (waiting if begin == 0 else 0))
        yield begin, end
        begin = end


def _joined(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    sources = zip(*(part.sources for part in parts), strict=True)
    # Joined in memory order (B, p, p, C), so that the layout stays channels last.
    joined = tuple(np.concatenate([s.transpose(0, 2, 3, 1) for s in source]).transpose(0, 3, 1, 2) for source in sources)
    return Batch(joined, np.concatenate([part.labels for part in parts]))
