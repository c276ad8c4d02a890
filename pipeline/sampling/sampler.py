"""The sampler: batches of patches for one worker, cut from patch stores as they are read.

The order of an epoch's samples is a pure function of (seed, epoch, rank). Windows of `CHUNK` x `CHUNK` pixels are
shuffled across the scenes and assigned to the workers so that each has the same number of draws. As many windows as fit
`GROUP_BYTES` when normalized, at least `FEWEST_WINDOWS`, form a group, and the draws of a group are shuffled together.
With 64 + 2 bands and patches of 7 x 7 a group is 14 windows, up to 229,376 samples; a window with few samples counts
only the size of their patches, so sparse labels are mixed over many more windows. A batch is therefore a random sample
of all classes and blocks of its group; other groups cover other areas.

How often a class is drawn is one of the frequencies of `pipeline.sampling.epoch_plan`. The numbers of draws follow from
the store's table of samples alone, rounded at random per window and class. Apart from that rounding they add up to the
number of samples, so an epoch has the same number of steps for all frequencies. The samples of one class in one window
are all drawn equally often, some of them once more.

While the network computes, one thread reads and normalizes the next group and another cuts the next batches: at most
two groups and `PREFETCH_BATCHES` batches are in memory besides the batch in use. Torch and numpy release the GIL while
they compute and copy.

Windows that together take at most `CACHE_BYTES` when normalized are read once and cached for the following epochs.

Pixels without data take the training median of their band, in the patches of samples and in maps alike
(`mibf.normalization`).

Reads from an object store that does not respond are retried (`pipeline.io.retry`): batches arrive late, but are the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mibf.errors import InputError
from mibf.normalization import Scaling
from mibf.training.batch import Batch, PatchTables, WindowBatch, WindowPixels
from mibf.transfer import pinned
from pipeline.codes import Subset
from pipeline.grid import Window
from pipeline.io.retry import StorageUnavailableError, call_with_retry
from pipeline.parallel.prefetch import PrefetchThreads
from pipeline.sampling.epoch_plan import (
    EpochGenerators,
    Frequencies,
    ShuffleGroup,
    WindowDraws,
    epoch_windows,
    groups_between,
    make_groups,
    times_drawn,
)
from pipeline.sampling.sample_table import SampleTable
from pipeline.sampling.shuffle_buffer import Allocator, Dropout, PatchLayout, ShuffleBuffer
from pipeline.sampling.store_catalog import sample_table
from pipeline.store.patch_store import PatchStore, scaled_window

#: Bytes of normalized windows that are shuffled together; a worker holds twice as many: those in use and the next ones.
GROUP_BYTES = 64 << 20
#: Scenes whose windows take at most this many bytes, normalized, are read once and cached: their epochs are short, and would
#: wait for each first window.
CACHE_BYTES = 128 << 20
#: Minimum number of windows that are shuffled together, whatever their size.
FEWEST_WINDOWS = 4
#: Batches that are cut before the network requests them.
PREFETCH_BATCHES = 4


#: Either form of a batch.
AnyBatch = TypeVar("AnyBatch", Batch, WindowBatch)


class ReadError(RuntimeError):
    """A window of a store could not be read; the message names both, and the cause is the original exception."""


@dataclass(frozen=True)
class Sampler:
    """The samples of one subset of some scenes, for worker `rank` of `workers`.

    `frequencies` sets how often classes are drawn for training. With `augment` each draw's patches are transformed by one of
    the eight symmetries of the square (or of those that the name of a mirror allows, see `ALLOWED`), the same for all
    sources. With a probability of `source_dropout`, below 1, a draw
    loses one of its two or more sources: the whole patch then holds the normalized values of missing data. `in_order`
    ignores all three. Without `background` everything runs in the thread that requests the batches; their content is the
    same. `group_windows` shuffles that many whole windows together instead of as many as `GROUP_BYTES` holds. `report` is
    called with one line, from any thread, when an object store does not respond.
    """

    stores: Sequence[PatchStore]
    scaling: Scaling
    patch: int
    subset: Subset
    rank: int = 0
    workers: int = 1
    frequencies: Frequencies = "natural"
    augment: bool | str = False
    source_dropout: float = 0.0
    background: bool = True
    group_windows: int | None = None
    report: Callable[[str], None] = lambda line: None

    @cached_property
    def _table(self) -> SampleTable:
        return sample_table(self.stores, self.subset, report=self.report)

    def _place(self, index: int) -> tuple[PatchStore, Window]:
        """The store and the window of an index of the table."""
        store, window = self._table.place(index)
        return self.stores[store], window

    @cached_property
    def _layout(self) -> PatchLayout:
        return PatchLayout(tuple(s for s in self.stores[0].sources if s.name in self.scaling), self.patch)

    @cached_property
    def _dropout(self) -> Dropout | None:
        if not self.source_dropout:
            return None
        if len(self._layout.sources) < 2:
            raise ValueError("source dropout needs at least two sources: a sample cannot lose the only source")
        return Dropout(self.source_dropout, tuple(self.scaling[source.name].filled for source in self._layout.sources))

    def samples(self) -> int:
        """Number of samples of the subset over all workers."""
        return int(self._table.counts.sum())

    def steps(self, batch: int) -> int:
        """Number of training batches per epoch, the same on every worker, at `batch` samples per worker."""
        return max(1, self.samples() // (batch * self.workers))

    def window_totals(self) -> NDArray[np.unsignedinteger]:
        """Number of samples of each window of all workers."""
        return self._table.totals

    def windows(self) -> int:
        """Number of windows with samples of the subset: each is read as a unit, by one worker or by those that share it."""
        return len(self._table)

    def counts(self) -> NDArray[np.int64]:
        """Number of samples per class over all workers (class,)."""
        return self._table.counts.copy()

    def shuffled(
        self, *, batch: int, seed: int, epoch: int, start: int = 0, steps: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the training batches of an epoch from step `start` on, in random order; the epoch has `steps` full batches.

        `steps` is `steps(batch)` by default; workers whose batches differ in size are given a common number.

        Starting at a later step yields what the complete epoch yields from there on, and reads no earlier window.
        A worker that runs out of draws (random rounding may give a few less than there are samples) starts over with its
        windows, with different draws; one with draws left over skips them.

        Raises:
            InputError: the epoch has no step `start`, or the subset has no samples.
            ReadError: a window cannot be read (raised when a batch is requested).
        """
        groups, chance = self._draws(batch, seed=seed, epoch=epoch, start=start, steps=steps)
        return self._batches(groups, batch, chance, self._cut)

    def shuffled_windows(
        self, *, batch: int, seed: int, epoch: int, start: int = 0, steps: int | None = None
    ) -> Generator[WindowBatch, None, None]:
        """Yield the batches of `shuffled` as the places of their patches in windows, to be gathered on a GPU.

        The windows are in pinned memory if there is a GPU.

        Raises:
            InputError, ReadError: as for `shuffled`.
        """
        groups, chance = self._draws(batch, seed=seed, epoch=epoch, start=start, steps=steps)
        return self._batches(groups, batch, chance, self._locate, allocate=pinned)

    def _draws(
        self, batch: int, *, seed: int, epoch: int, start: int, steps: int | None
    ) -> tuple[Iterable[tuple[ShuffleGroup, int, int]], EpochGenerators]:
        """The groups of an epoch from step `start` on, each with the range of its draws to use, and its generators."""
        steps = self.steps(batch) if steps is None else steps
        if not 0 <= start <= steps:
            raise InputError(
                f"step {start} of epoch {epoch}: an epoch has {steps} steps of {batch} samples per worker. The position was "
                "saved with different samples, batch size or number of workers; resume with those, or train again."
            )
        if not len(self._table):
            raise InputError(f"{self.stores[0].url}: no samples in the subset {self.subset!r}; check labels and split.")
        parts = epoch_windows(
            self._table,
            frequencies=self.frequencies,
            seed=seed,
            epoch=epoch,
            rank=self.rank,
            workers=self.workers,
        )
        wanted = groups_between(self._grouped(parts), start * batch, steps * batch)
        return wanted, EpochGenerators(seed, epoch, self.rank, self.augment)

    def in_order(self, *, batch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield each of this worker's samples once, in grid order, for validation and testing; the last batch may be short.

        Only those from number `start` to `stop`, without it, are read: in the same batches if `start` is a multiple of
        `batch`.

        Raises:
            ReadError: a window cannot be read.
        """
        return self._batches(self._in_order(start, stop), batch, None, self._cut)

    def shuffled_for(self, device: torch.device, **order: Any) -> Generator[Batch | WindowBatch, None, None]:
        """Yield the batches of `shuffled` in the form that suits a device: windows for a GPU, patches for a CPU."""
        return self.shuffled_windows(**order) if device.type == "cuda" else self.shuffled(**order)

    def in_order_windows(self, *, batch: int, start: int = 0, stop: int | None = None) -> Iterator[WindowBatch]:
        """Yield the batches of `in_order` as the places of their patches in windows, to be gathered on a GPU.

        Raises:
            ReadError: a window cannot be read.
        """
        return self._batches(self._in_order(start, stop), batch, None, self._locate, allocate=pinned)

    def in_order_for(self, device: torch.device, **order: Any) -> Iterator[Batch | WindowBatch]:
        """Yield the batches of `in_order` in the form that suits a device."""
        return self.in_order_windows(**order) if device.type == "cuda" else self.in_order(**order)

    def _in_order(self, start: int, stop: int | None) -> Iterable[tuple[ShuffleGroup, int, int]]:
        table = self._table
        counted = ((i, table.samples(i)) for i in range(self.rank, len(table), self.workers))
        parts = (WindowDraws.full(i, 0, samples, samples) for i, samples in counted)
        return groups_between(self._grouped(parts), start, stop)

    def _grouped(self, parts: Iterable[WindowDraws]) -> Iterator[ShuffleGroup]:
        """Group the windows that are in memory together: as many as fit, or `FEWEST_WINDOWS` whole ones."""
        layout = self._layout
        window_bytes = layout.side**2 * layout.pixel_bytes
        limit = (
            max(GROUP_BYTES, FEWEST_WINDOWS * window_bytes)
            if self.group_windows is None
            else self.group_windows * window_bytes
        )
        return make_groups(parts, size=lambda part: layout.pixels(part.distinct) * layout.pixel_bytes, limit=limit)

    def _batches(
        self,
        groups: Iterable[tuple[ShuffleGroup, int, int]],
        batch: int,
        chance: EpochGenerators | None,
        cut: Callable[[Generator[tuple[ShuffleBuffer, int, int], None, None], int], Generator[AnyBatch, None, None]],
        **allocate: Allocator,
    ) -> Generator[AnyBatch, None, None]:
        threads = PrefetchThreads()
        buffers = self._read(groups, chance, threads, **allocate)
        if not self.background:
            return cut(buffers, batch)
        buffers = threads.prefetch(buffers, depth=1, name="mibf-read")
        return threads.prefetch(cut(buffers, batch), depth=PREFETCH_BATCHES, name="mibf-cut")

    def _read(
        self,
        groups: Iterable[tuple[ShuffleGroup, int, int]],
        chance: EpochGenerators | None,
        threads: PrefetchThreads,
        **allocate: Allocator,
    ) -> Generator[tuple[ShuffleBuffer, int, int], None, None]:
        """Yield each group in memory, with the range of its draws to use; end early if no more batches are needed."""
        layout = self._layout
        for group, begin, end in groups:
            pixels = sum(layout.pixels(part.distinct) for part in group.parts)
            buffer = ShuffleBuffer(layout, pixels, self._dropout, **allocate)
            for part in group.parts:
                if threads.stop.is_set():
                    return
                self._add(buffer, part, chance, threads)
            if chance is None:
                buffer.arrange()
            else:
                buffer.arrange(chance.shuffle(group), chance.turn(group), chance.lose(group), augment=self.augment)
            yield buffer, begin, end
            del buffer  # otherwise it stays in memory while the next group is read

    def _add(
        self, buffer: ShuffleBuffer, part: WindowDraws, chance: EpochGenerators | None, threads: PrefetchThreads
    ) -> None:
        """Read one window and add it to the buffer with the samples that are drawn."""
        store, window = self._place(part.index)
        try:
            ids, sources = self._read_window(part.index, threads, is_random=chance is not None)
        except (InputError, StorageUnavailableError):
            raise  # these already name the store and the remedy
        except Exception as error:
            raise ReadError(
                f"{store.url}: the window of {window.height} x {window.width} pixels at row {window.y}, column {window.x} "
                f"cannot be read ({error}); if the store is damaged, run `mibf prepare` again."
            ) from error
        cells = [np.flatnonzero(ids == c.id) for c in store.classes]  # by class, row by row
        if [len(c) for c in cells] != part.samples.tolist():
            raise ReadError(
                f"{store.url}: the window at row {window.y}, column {window.x} holds {[len(c) for c in cells]} samples "
                f"per class, but the store's table says {part.samples.tolist()}; run `mibf prepare` again."
            )
        times = np.ones(part.samples.sum(), np.int64) if chance is None else times_drawn(part, chance.pick(part))
        chosen = np.argsort(np.concatenate(cells))
        chosen = chosen[times[chosen] > 0]  # in grid order
        rows, columns = np.divmod(np.concatenate(cells)[chosen], window.width)
        labels = np.repeat(np.arange(len(cells)), part.samples)[chosen]
        buffer.add(sources, rows=rows, columns=columns, labels=labels, times=times[chosen])

    def _read_window(
        self, index: int, threads: PrefetchThreads, *, is_random: bool
    ) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
        """Class ids of a window's samples and its normalized sources; from the cache if all windows fit `CACHE_BYTES`."""
        store, window = self._place(index)

        def read() -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
            ids = store.samples(window)[self.subset]
            return ids, scaled_window(store, window, self.scaling, halo=self.patch // 2, random=is_random)

        found = self._cache.get(index)
        if found is None:
            found = call_with_retry(store.url, read, report=self.report, pause=threads.stop.wait)
            if self._is_small:
                self._cache[index] = found
        return found

    @cached_property
    def _cache(self) -> dict[int, tuple[NDArray[np.uint8], list[NDArray[np.float32]]]]:
        return {}

    @cached_property
    def _is_small(self) -> bool:
        return self._table.padded_pixels(self.patch) * self._layout.pixel_bytes <= CACHE_BYTES

    def _cut(
        self, groups: Generator[tuple[ShuffleBuffer, int, int], None, None], batch: int
    ) -> Generator[Batch, None, None]:
        """Cut batches: one may span two groups, and the last one is short if the draws run out."""
        shapes = [((self.patch * s.scale) ** 2, s.bands) for s in self._layout.sources]
        filled = 0
        try:
            for buffer, begin, end in groups:
                while begin < end:
                    if not filled:
                        patches = [np.empty((batch, *shape), np.float32) for shape in shapes]
                        labels = np.empty(batch, np.int64)
                    number = min(batch - filled, end - begin)
                    to = slice(filled, filled + number)
                    buffer.gather(begin, begin + number, [p[to] for p in patches], labels[to])
                    begin, filled = begin + number, (filled + number) % batch
                    if not filled:
                        yield self._batch(patches, labels)
                del buffer  # otherwise it stays in memory while waiting for the next group
            if filled:
                yield self._batch([p[:filled] for p in patches], labels[:filled])
        finally:
            groups.close()

    def _locate(
        self, groups: Generator[tuple[ShuffleBuffer, int, int], None, None], batch: int
    ) -> Generator[WindowBatch, None, None]:
        """Locate the patches of batches, which are those of `_cut`."""
        tables = self._tables
        parts: list[tuple[WindowPixels, int]] = []
        places: list[NDArray[np.int64]] = []
        filled = 0
        try:
            for buffer, begin, end in groups:
                while begin < end:
                    number = min(batch - filled, end - begin)
                    parts.append((buffer.pixels, number))
                    places.append(buffer.places(begin, begin + number))
                    begin, filled = begin + number, (filled + number) % batch
                    if not filled:
                        yield WindowBatch(tables, tuple(parts), np.concatenate(places, axis=1))
                        parts, places = [], []
                del buffer  # otherwise it stays in memory while waiting for the next group
            if filled:
                yield WindowBatch(tables, tuple(parts), np.concatenate(places, axis=1))
        finally:
            groups.close()

    @cached_property
    def _tables(self) -> PatchTables:
        return self._layout.tables(self._dropout)

    def _batch(self, patches: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> Batch:
        """Reshape patches to the network's input, (B, C, p, p), channels last in memory."""
        sides = [self.patch * s.scale for s in self._layout.sources]
        shaped = (p.reshape(len(p), side, side, -1) for p, side in zip(patches, sides, strict=True))
        return Batch(tuple(p.transpose(0, 3, 1, 2) for p in shaped), labels)
