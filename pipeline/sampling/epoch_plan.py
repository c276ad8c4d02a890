"""Plan an epoch: how often each sample is drawn and by which worker, as pure functions of (seed, epoch, rank).

No pixel is read: everything follows from the table of samples per window and class, so a worker knows where in its epoch
a window lies without reading it. Every random decision has its own generator, keyed by what it decides: none depends on
which decisions were made before it, and an epoch can be entered at any position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.sampling.random_numbers import uniform_numbers
from pipeline.sampling.sample_table import SampleTable

#: Windows of an order that are looked at together.
CHUNK = 1 << 20
#: How often classes are drawn: as they occur, all equally often, or by the square root of their number of samples.
Frequencies = Literal["natural", "balanced", "sqrt"]


class RandomStream(IntEnum):
    """What a generator decides: the first part of its key, so that no two decisions share a random stream."""

    DEAL = 0
    ROUND = 1
    PICK = 2
    SHUFFLE = 3
    TURN = 4
    LOSE = 5


def generator(choice: RandomStream, *key: int) -> np.random.Generator:
    """Return the generator of one decision."""
    return np.random.default_rng([choice, *key])


@dataclass(frozen=True, eq=False)
class WindowDraws:
    """What one worker draws from one window: `draws` (class,) of its `samples` (class,), in pass `lap` over the windows.

    Workers that share a window each take a range [begin, end) of its draws, which all of them shuffle in the same way.
    """

    index: int  #: index of the window in the list of all windows with samples
    lap: int
    samples: NDArray[np.int64]
    draws: NDArray[np.int64]
    begin: int
    end: int

    @classmethod
    def full(cls, index: int, lap: int, samples: NDArray[np.int64], draws: NDArray[np.int64]) -> WindowDraws:
        """All draws of a window."""
        return cls(index, lap, samples, draws, 0, int(draws.sum()))

    @property
    def total(self) -> int:
        """Number of draws in the range, over all classes."""
        return self.end - self.begin

    @property
    def is_full(self) -> bool:
        """Whether the range covers all draws of the window."""
        return self.total == int(self.draws.sum())

    @property
    def distinct(self) -> int:
        """Maximum number of distinct samples that are drawn."""
        return min(self.total, int(np.minimum(self.draws, self.samples).sum()))


@dataclass(frozen=True, eq=False)
class ShuffleGroup:
    """Windows that are in memory together and whose draws are shuffled together; `number` counts an epoch's groups."""

    number: int
    parts: tuple[WindowDraws, ...]

    @property
    def total(self) -> int:
        """Number of draws from all windows."""
        return sum(part.total for part in self.parts)


def expected_draws(samples: NDArray[np.int64], frequencies: Frequencies) -> NDArray[np.float64]:
    """Expected number of draws per sample of each class in an epoch, from the number of samples per class (class,).

    The draws of all classes add up to the total number of samples N: a class of n_c samples gets N * share, where the share
    is n_c / N (natural), 1 / C (balanced) or sqrt(n_c) / sum sqrt(n) (sqrt). C counts the classes that have samples; a
    class without samples cannot be drawn, and gets 0 here.
    """
    present = samples > 0
    if frequencies == "natural":
        return present.astype(np.float64)  # exactly once: there is no random rounding
    weights = np.where(present, 1.0 if frequencies == "balanced" else np.sqrt(samples), 0.0)
    expected: NDArray[np.float64] = samples.sum() * weights / weights.sum() / np.maximum(samples, 1)
    return expected


def rounded_draws(
    samples: NDArray[np.int64], expected: NDArray[np.float64], *, seed: int, epoch: int, index: int, lap: int
) -> WindowDraws:
    """The draws of a window: samples x expected draws per class, rounded up or down at random.

    The probability of rounding up is the fraction lost by rounding down, so the expected number is preserved exactly: a
    class that occurs once in each of many windows is not rounded away.
    """
    exact = samples * expected
    down = np.floor(exact)
    up: NDArray[np.bool_] | bool = False
    if (exact > down).any():  # a generator takes longer to create than all else
        up = generator(RandomStream.ROUND, seed, epoch, lap, index).random(len(samples)) < exact - down
    return WindowDraws.full(index, lap, samples, (down + up).astype(np.int64))


def times_drawn(part: WindowDraws, pick: np.random.Generator) -> NDArray[np.int64]:
    """How often a worker draws each sample of a window (samples of the first class, then of the second, ...).

    All samples of a class are drawn equally often, and the remainder goes to samples chosen by `pick`, one more draw each.
    For a shared window, `pick` also shuffles the draws, and only the worker's range is counted.
    """
    times = []
    for samples, draws in zip(part.samples, part.draws, strict=True):
        full, more = divmod(int(draws), int(samples)) if samples else (0, 0)
        own = np.full(samples, full)
        if more:
            own[pick.choice(samples, more, replace=False)] += 1
        times.append(own)
    every = np.concatenate(times)
    if part.is_full:
        return every
    shuffled = pick.permutation(np.repeat(np.arange(len(every)), every))
    return np.bincount(shuffled[part.begin : part.end], minlength=len(every))


@dataclass(frozen=True, eq=False)
class _Dealt:
    """The windows of one worker in its order: all their draws, except of the first and the last one."""

    index: NDArray[np.uint32]
    begin: int  #: of the first window's range
    end: int  #: of the last window's range

    def __len__(self) -> int:
        return len(self.index)


def deal_windows(totals: NDArray[np.integer], *, rank: int, workers: int, seed: int, epoch: int) -> _Dealt:
    """Assign windows with numbers of draws to one worker: those with draws are shuffled and cut into one range per worker.

    A window that straddles a cut is read by both workers. No draw is lost or duplicated, and the numbers of draws differ by
    at most one: rare classes keep their frequency however few and unequal the windows are.
    """
    total = int(totals.sum(dtype=np.int64))
    first, last = total * rank // workers, total * (rank + 1) // workers
    order = _with_draws(totals)
    generator(RandomStream.DEAL, seed, epoch).shuffle(order)  # as a `permutation`, in place
    before, own, begin, end = 0, [order[:0]], 0, 0
    for start in range(0, len(order), CHUNK):
        part = order[start : start + CHUNK]
        draws = totals[part].astype(np.int64)
        ends = draws.cumsum() + before
        kept = np.flatnonzero(np.minimum(ends, last) > np.maximum(ends - draws, first))
        if len(kept):
            begin = begin if len(own) > 1 else max(first - int(ends[kept[0]] - draws[kept[0]]), 0)
            end = int(min(last - int(ends[kept[-1]] - draws[kept[-1]]), draws[kept[-1]]))
            own.append(part[kept])
        before = int(ends[-1])
    return _Dealt(np.concatenate(own), begin, end)


def _with_draws(totals: NDArray[np.integer]) -> NDArray[np.uint32]:
    """The windows with draws, in order. `flatnonzero` takes twice the memory."""
    every = np.arange(len(totals), dtype=np.uint32)
    return every if totals.all() else every[totals > 0]


def epoch_windows(
    samples: SampleTable, *, frequencies: Frequencies, seed: int, epoch: int, rank: int, workers: int
) -> Iterator[WindowDraws]:
    """Yield the windows that one worker draws from, in its order and without end: its assigned windows, repeatedly.

    Every pass over them, a lap, has different draws. A worker that was assigned none takes all windows.

    Args:
        samples: numbers of samples per window and class; at least one window.
        frequencies: how often the classes are drawn.
        seed: the run's seed.
        epoch: counted from 0.
        rank: rank of the worker among `workers`.
        workers: number of workers.
    """
    expected = expected_draws(samples.counts, frequencies)

    def draw(index: int, lap: int) -> WindowDraws:
        return rounded_draws(samples.samples(index), expected, seed=seed, epoch=epoch, index=index, lap=lap)

    totals = samples.totals if frequencies == "natural" else _first_draws(samples, expected, seed=seed, epoch=epoch)
    own = deal_windows(totals, rank=rank, workers=workers, seed=seed, epoch=epoch)
    if not len(own):
        every = _with_draws(totals)
        own = _Dealt(every, 0, int(totals[every[-1]]))
    del totals
    for position, index in enumerate(own.index):
        part = draw(int(index), 0)
        begin = own.begin if position == 0 else 0
        end = own.end if position == len(own) - 1 else part.end
        yield replace(part, begin=begin, end=end)
    for lap in count(1):
        yield from (part for index in own.index if (part := draw(int(index), lap)).total)


def _first_draws(samples: SampleTable, expected: NDArray[np.float64], *, seed: int, epoch: int) -> NDArray[np.uint32]:
    """The total of `rounded_draws` of each window in the first lap."""
    found, begin = np.empty(len(samples), np.uint32), 0
    for part in samples.parts():
        exact = part.samples * expected
        down = np.floor(exact)
        left = exact - down
        index = np.arange(begin, begin + len(left))
        drawn = uniform_numbers([RandomStream.ROUND, seed, epoch, 0], index, left.shape[1])
        found[begin : begin + len(left)] = (down + (drawn < left)).sum(axis=1)
        begin += len(left)
    return found


def make_groups(parts: Iterable[WindowDraws], *, size: Callable[[WindowDraws], int], limit: int) -> Iterator[ShuffleGroup]:
    """Group consecutive windows, as many as fit into `limit` by their sizes, at least one; no group spans two laps."""
    group: list[WindowDraws] = []
    number = used = 0
    for part in parts:
        if group and (used + size(part) > limit or part.lap != group[0].lap):
            yield ShuffleGroup(number, tuple(group))
            group, used, number = [], 0, number + 1
        group.append(part)
        used += size(part)
    if group:
        yield ShuffleGroup(number, tuple(group))


def groups_between(
    groups: Iterable[ShuffleGroup], start: int, stop: int | None = None
) -> Iterator[tuple[ShuffleGroup, int, int]]:
    """Yield the groups that contain the draws [start, stop) of all, each with the range of its own draws among them."""
    if start == stop:
        return
    begin = 0
    for group in groups:
        end = begin + group.total
        if end > start:
            yield group, max(start - begin, 0), (end if stop is None else min(stop, end)) - begin
        if stop is not None and end >= stop:
            return
        begin = end


@dataclass(frozen=True)
class EpochGenerators:
    """The random generators of a worker's epoch."""

    seed: int
    epoch: int
    rank: int
    augment: bool | str

    def pick(self, part: WindowDraws) -> np.random.Generator:
        """The generator for what is drawn from a window: the same for all workers that share it."""
        return generator(RandomStream.PICK, self.seed, self.epoch, part.lap, part.index)

    def shuffle(self, group: ShuffleGroup) -> np.random.Generator:
        """The generator for the order of a group's draws."""
        return generator(RandomStream.SHUFFLE, self.seed, self.epoch, self.rank, group.number)

    def turn(self, group: ShuffleGroup) -> np.random.Generator | None:
        """The generator for the symmetry of each of a group's draws; None without augmentation."""
        return generator(RandomStream.TURN, self.seed, self.epoch, self.rank, group.number) if self.augment else None

    def lose(self, group: ShuffleGroup) -> np.random.Generator:
        """The generator for the source that each of a group's draws loses, if there is source dropout."""
        return generator(RandomStream.LOSE, self.seed, self.epoch, self.rank, group.number)
