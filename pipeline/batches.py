"""Batches of patches for one worker, cut from stores as they are read.

The order of an epoch's samples is a pure function of (seed, epoch, rank). Windows of `CHUNK` x `CHUNK` pixels are
shuffled over the scenes and dealt to the workers, draws in equal numbers; as many as fit `GROUP_BYTES` scaled, at least
`FEWEST`, make a group, and the draws of a group are shuffled together. At 64 + 2 bands and patches of 7 x 7 that is 14
windows, up to 229,376 samples; a window of few samples counts with their patches alone, so that sparse labels are mixed
over many more windows. A batch is therefore a random sample of all classes and blocks of its group; other groups are of
other ground.

How often a class is drawn is one of the frequencies of `pipeline.order`. The numbers of draws follow from the store's
table of samples alone, rounded at random window by window and class by class; they add up to the number of samples but
for that rounding, so that an epoch has the same number of steps whatever the frequencies. The samples of one class in
one window are all drawn equally often, some of them once more.

While the network computes, one thread reads and scales the next group and another cuts the next batches: at the most
two groups and `BATCHES_AHEAD` batches are in memory beside the batch that the network has. Torch and numpy let go of
Python's interpreter while they compute and copy.

Windows that together take no more than `KEPT_BYTES` scaled are read once, and kept for the epochs to come.

Pixels without data take the training median of their band, in samples' patches and in maps alike (`mibf.scaling`).

A store in an object store that does not answer is waited for (`pipeline.patience`): batches come late, and are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from mibf.scaling import Scaling
from mibf.training import Batch
from pipeline.ahead import Background
from pipeline.grid import Window
from pipeline.held import Dropout, Held, Layout
from pipeline.order import Choice, Draws, Frequencies, Group, between, epoch_of, generator, grouped, times_drawn
from pipeline.patience import AwayError, patiently
from pipeline.split import Subset
from pipeline.store import PatchStore

#: Bytes of scaled windows that are shuffled together; a worker holds twice as many: those in use and the next ones.
GROUP_BYTES = 64 << 20
#: Scenes whose windows take no more, scaled, are read once and kept: their epochs are short, and would wait for each
#: first window.
KEPT_BYTES = 128 << 20
#: Windows that are shuffled together however large they are.
FEWEST = 4
#: Batches that are cut before the network asks for them.
BATCHES_AHEAD = 4


class ReadError(RuntimeError):
    """A window of a store could not be read; the message names both, the cause is what reading raised."""


@dataclass(frozen=True)
class Position:
    """Where a training stands: `step` batches of `epoch` are done, both counted from 0."""

    epoch: int
    step: int

    def to_json(self) -> dict[str, int]:
        """The position as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Position:
        """The position that `to_json` wrote.

        Raises:
            InputError: the value is none.
        """
        match value:
            case {"epoch": int(epoch), "step": int(step)} if epoch >= 0 and step >= 0 and len(value) == 2:
                return cls(epoch, step)
        raise InputError(
            f"{value!r} is no position in the training data: that is {{'epoch': E, 'step': S}}, two whole numbers from 0 "
            "on. Remove the run's checkpoints and train again."
        )


def scaled_window(store: PatchStore, window: Window, scaling: Scaling, *, halo: int) -> list[NDArray[np.float32]]:
    """Every source's window with halo, (band, (height + 2 halo) * scale, (width + 2 halo) * scale), scaled to [0, 1].

    What the network sees of a scene, in training and mapping alike: mirrored beyond the scene's edges, the
    training median where a source has no data. A source without a scaling is one that the network does not take.
    """
    taken = [source.name for source in store.sources if source.name in scaling]
    return [scaling[name].apply(*store.read_source(name, window, halo=halo)) for name in taken]


@dataclass(frozen=True)
class _Place:
    """A window of a store that holds samples of the subset, and how many of each class (class,)."""

    store: PatchStore
    window: Window
    samples: NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """The samples of one subset of some scenes, for worker `rank` of `workers`.

    `frequencies` says how often classes are drawn for training; with `augment` each draw's patches are turned by one of
    the eight symmetries of the square, the same in all sources; with a probability of `source_dropout`, below 1, it
    loses one of its sources, of two or more: the whole patch holds what the scaling gives where that source has no data.
    `in_order` heeds none of the three. Without `background` all is done in the thread that asks for the batches; what they
    hold is the same. `group_windows` shuffles that many whole windows together in place of as many as `GROUP_BYTES` hold.
    `tell` is given a line, in any thread, when a store in an object store does not answer.
    """

    stores: Sequence[PatchStore]
    scaling: Scaling
    patch: int
    subset: Subset
    rank: int = 0
    workers: int = 1
    frequencies: Frequencies = "natural"
    augment: bool = False
    source_dropout: float = 0.0
    background: bool = True
    group_windows: int | None = None
    tell: Callable[[str], None] = lambda line: None

    @cached_property
    def _places(self) -> list[_Place]:
        return [
            _Place(store, window, samples)
            for store in self.stores
            for window, samples in patiently(store.url, partial(store.windows_with_samples, self.subset), tell=self.tell)
        ]

    @cached_property
    def _layout(self) -> Layout:
        return Layout(tuple(s for s in self.stores[0].sources if s.name in self.scaling), self.patch)

    @cached_property
    def _dropout(self) -> Dropout | None:
        if not self.source_dropout:
            return None
        if len(self._layout.sources) < 2:
            raise ValueError("a sample cannot lose the only source that there is")
        return Dropout(self.source_dropout, tuple(self.scaling[source.name].filled for source in self._layout.sources))

    def samples(self) -> int:
        """Samples of the subset over all workers."""
        return sum(int(place.samples.sum()) for place in self._places)

    def steps(self, batch: int) -> int:
        """Training batches of an epoch on every worker alike, at `batch` samples a worker."""
        return max(1, self.samples() // (batch * self.workers))

    def windows(self) -> int:
        """Windows that hold samples of the subset: each is read as one, by one worker or by those that share it."""
        return len(self._places)

    def counts(self) -> NDArray[np.int64]:
        """Samples of each class over all workers (class,)."""
        none = np.zeros(len(self.stores[0].classes), np.int64)
        return np.asarray(sum((place.samples for place in self._places), none))

    def shuffled(self, *, batch: int, seed: int, epoch: int, start: int = 0, steps: int | None = None) -> Iterator[Batch]:
        """An epoch for training from step `start` on: `steps` full batches in all, in a random order.

        Unless given, `steps` is `steps(batch)`; workers whose batches differ in size are given the number they share.

        Begun at a later step it gives what the whole epoch gives from there on, and reads no window that lies before.
        A worker whose draws give out (of classes drawn by chance there may be a few less than there are samples) begins
        with its windows again, with other draws; one with draws left over leaves them.

        Raises:
            InputError: the epoch has no step `start`, or the subset no sample.
            ReadError: a window cannot be read (when a batch is asked for).
        """
        steps = self.steps(batch) if steps is None else steps
        if not 0 <= start <= steps:
            raise InputError(
                f"step {start} of epoch {epoch}: an epoch has {steps} steps of {batch} samples a worker. The position was "
                "saved with other samples, another batch or another number of workers; go on with those, or train again."
            )
        if not self._places:
            raise InputError(f"{self.stores[0].url}: no sample in the subset {self.subset!r}; check labels and split.")
        parts = epoch_of(
            np.array([place.samples for place in self._places]),
            frequencies=self.frequencies,
            seed=seed,
            epoch=epoch,
            rank=self.rank,
            workers=self.workers,
        )
        wanted = between(self._grouped(parts), start * batch, steps * batch)
        return self._batches(wanted, batch, _Chance(seed, epoch, self.rank, self.augment))

    def in_order(self, *, batch: int) -> Iterator[Batch]:
        """Each of this worker's samples once, in the order of the grid, for validation and testing; the last batch is short.

        Raises:
            ReadError: a window cannot be read.
        """
        own = range(self.rank, len(self._places), self.workers)
        parts = (Draws.whole(i, 0, self._places[i].samples, self._places[i].samples) for i in own)
        return self._batches(between(self._grouped(parts), 0), batch, None)

    def _grouped(self, parts: Iterable[Draws]) -> Iterator[Group]:
        """The windows that are held together: as many as fit, or `FEWEST` whole ones."""
        layout = self._layout
        window_bytes = layout.side**2 * layout.pixel_bytes
        limit = max(GROUP_BYTES, FEWEST * window_bytes) if self.group_windows is None else self.group_windows * window_bytes
        return grouped(parts, size=lambda part: layout.pixels(part.distinct) * layout.pixel_bytes, limit=limit)

    def _batches(
        self, groups: Iterable[tuple[Group, int, int]], batch: int, chance: _Chance | None
    ) -> Generator[Batch, None, None]:
        threads = Background()
        held = self._read(groups, chance, threads)
        if not self.background:
            return self._cut(held, batch)
        held = threads.ahead(held, depth=1, name="mibf-read")
        return threads.ahead(self._cut(held, batch), depth=BATCHES_AHEAD, name="mibf-cut")

    def _read(
        self, groups: Iterable[tuple[Group, int, int]], chance: _Chance | None, threads: Background
    ) -> Generator[tuple[Held, int, int], None, None]:
        """Each group in memory, with the range of its draws that are wanted; ends early where nobody wants more."""
        layout = self._layout
        for group, begin, end in groups:
            held = Held(layout, sum(layout.pixels(part.distinct) for part in group.parts), self._dropout)
            for part in group.parts:
                if threads.stop.is_set():
                    return
                self._add(held, part, chance, threads)
            if chance is None:
                held.arrange()
            else:
                held.arrange(chance.shuffle(group), chance.turn(group), chance.lose(group))
            yield held, begin, end
            del held  # it would live on while the next group is read

    def _add(self, held: Held, part: Draws, chance: _Chance | None, threads: Background) -> None:
        """Read one window and take it in with the samples that are drawn."""
        place = self._places[part.place]
        store, window = place.store, place.window
        try:
            ids, sources = self._read_window(part.place, threads)
        except (InputError, AwayError):
            raise  # they name the store and the remedy
        except Exception as error:
            raise ReadError(
                f"{store.url}: the window of {window.height} x {window.width} pixels at row {window.y}, column {window.x} "
                f"cannot be read ({error}); where the store is damaged, run `mibf prepare` again."
            ) from error
        cells = [np.flatnonzero(ids == c.id) for c in store.classes]  # by class, row by row
        if [len(c) for c in cells] != part.samples.tolist():
            raise ReadError(
                f"{store.url}: the window at row {window.y}, column {window.x} holds {[len(c) for c in cells]} samples "
                f"of its classes where the store's table says {part.samples.tolist()}; run `mibf prepare` again."
            )
        times = np.ones(part.samples.sum(), np.int64) if chance is None else times_drawn(part, chance.pick(part))
        chosen = np.argsort(np.concatenate(cells))
        chosen = chosen[times[chosen] > 0]  # in the grid's order
        rows, columns = np.divmod(np.concatenate(cells)[chosen], window.width)
        labels = np.repeat(np.arange(len(cells)), part.samples)[chosen]
        held.add(sources, rows=rows, columns=columns, labels=labels, times=times[chosen])

    def _read_window(self, place: int, threads: Background) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
        """Class ids of a window's samples and its scaled sources; from memory where all windows fit `KEPT_BYTES`."""
        store, window = self._places[place].store, self._places[place].window

        def read() -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
            return store.samples(window)[self.subset], scaled_window(store, window, self.scaling, halo=self.patch // 2)

        found = self._kept.get(place)
        if found is None:
            found = patiently(store.url, read, tell=self.tell, pause=threads.stop.wait)
            if self._is_small:
                self._kept[place] = found
        return found

    @cached_property
    def _kept(self) -> dict[int, tuple[NDArray[np.uint8], list[NDArray[np.float32]]]]:
        return {}

    @cached_property
    def _is_small(self) -> bool:
        pixels = sum((p.window.height + self.patch) * (p.window.width + self.patch) for p in self._places)
        return pixels * self._layout.pixel_bytes <= KEPT_BYTES

    def _cut(self, groups: Generator[tuple[Held, int, int], None, None], batch: int) -> Generator[Batch, None, None]:
        """Batches, those at a group's end with the beginning of the next one's; the last one short where draws give out."""
        shapes = [((self.patch * s.scale) ** 2, s.bands) for s in self._layout.sources]
        filled = 0
        try:
            for held, begin, end in groups:
                while begin < end:
                    if not filled:
                        patches = [np.empty((batch, *shape), np.float32) for shape in shapes]
                        labels = np.empty(batch, np.int64)
                    number = min(batch - filled, end - begin)
                    to = slice(filled, filled + number)
                    held.gather(begin, begin + number, [p[to] for p in patches], labels[to])
                    begin, filled = begin + number, (filled + number) % batch
                    if not filled:
                        yield self._batch(patches, labels)
                del held  # it would live on while the next group is waited for
            if filled:
                yield self._batch([p[:filled] for p in patches], labels[:filled])
        finally:
            groups.close()

    def _batch(self, patches: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> Batch:
        """Patches as the network takes them, (B, C, p, p), laid out channels last."""
        sides = [self.patch * s.scale for s in self._layout.sources]
        shaped = (p.reshape(len(p), side, side, -1) for p, side in zip(patches, sides, strict=True))
        return Batch(tuple(p.transpose(0, 3, 1, 2) for p in shaped), labels)


@dataclass(frozen=True)
class _Chance:
    """The generators of a worker's epoch."""

    seed: int
    epoch: int
    rank: int
    augment: bool

    def pick(self, part: Draws) -> np.random.Generator:
        """For what is drawn from a window: the same for all workers that share it."""
        return generator(Choice.PICK, self.seed, self.epoch, part.lap, part.place)

    def shuffle(self, group: Group) -> np.random.Generator:
        """For the order of a group's draws."""
        return generator(Choice.SHUFFLE, self.seed, self.epoch, self.rank, group.number)

    def turn(self, group: Group) -> np.random.Generator | None:
        """For how each of a group's draws is turned; None where none is."""
        return generator(Choice.TURN, self.seed, self.epoch, self.rank, group.number) if self.augment else None

    def lose(self, group: Group) -> np.random.Generator:
        """For which source each of a group's draws loses, where there is dropout."""
        return generator(Choice.LOSE, self.seed, self.epoch, self.rank, group.number)
