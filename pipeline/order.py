"""How often each sample is drawn in an epoch, and by whom: pure functions of (seed, epoch, rank). Reads no pixel.

All of it follows from the table of samples by window and class, so that a worker knows where in its epoch a window
lies without reading it. Every random choice has a generator of its own, keyed by what it decides: none depends on
which others were made before it, and an epoch can be entered at any place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: How often classes are drawn: as they occur, all equally often, or by the square root of how often they occur.
Frequencies = Literal["natural", "balanced", "sqrt"]


class Choice(IntEnum):
    """What a generator decides: the first part of its key, so that no two of them draw the same numbers."""

    DEAL = 0
    ROUND = 1
    PICK = 2
    SHUFFLE = 3
    TURN = 4
    LOSE = 5


def generator(choice: Choice, *key: int) -> np.random.Generator:
    """The generator of one decision."""
    return np.random.default_rng([choice, *key])


@dataclass(frozen=True, eq=False)
class Draws:
    """What one worker draws from one window: `draws` (class,) of its `samples` (class,), in pass `lap` over the windows.

    Where two workers share a window, each takes the range [begin, end) of its draws, shuffled alike by both.
    """

    place: int  #: position of the window in the list of all that hold samples
    lap: int
    samples: NDArray[np.int64]
    draws: NDArray[np.int64]
    begin: int
    end: int

    @classmethod
    def whole(cls, place: int, lap: int, samples: NDArray[np.int64], draws: NDArray[np.int64]) -> Draws:
        """All draws of a window."""
        return cls(place, lap, samples, draws, 0, int(draws.sum()))

    @property
    def total(self) -> int:
        """Draws of the range, of all classes."""
        return self.end - self.begin

    @property
    def is_whole(self) -> bool:
        """Whether they are all of the window's."""
        return self.total == int(self.draws.sum())

    @property
    def distinct(self) -> int:
        """Samples that are drawn once or more, at the most."""
        return min(self.total, int(np.minimum(self.draws, self.samples).sum()))


@dataclass(frozen=True, eq=False)
class Group:
    """Windows that are in memory together and whose draws are shuffled together; `number` counts an epoch's groups."""

    number: int
    parts: tuple[Draws, ...]

    @property
    def total(self) -> int:
        """Draws of all windows."""
        return sum(part.total for part in self.parts)


def expected_draws(samples: NDArray[np.int64], frequencies: Frequencies) -> NDArray[np.float64]:
    """How often one sample of each class is drawn in an epoch, on average, from the number of samples of each (class,).

    The draws of all classes add up to the N samples that there are: of a class of n_c, N * share, where the share is
    n_c / N (natural), 1 / C (balanced) or sqrt(n_c) / sum sqrt(n) (sqrt). C counts the classes that have samples; one
    without cannot be drawn, and has 0 here.
    """
    present = samples > 0
    if frequencies == "natural":
        return present.astype(np.float64)  # exactly once: no rounding is left to chance
    weights = np.where(present, 1.0 if frequencies == "balanced" else np.sqrt(samples), 0.0)
    expected: NDArray[np.float64] = samples.sum() * weights / weights.sum() / np.maximum(samples, 1)
    return expected


def rounded_draws(
    samples: NDArray[np.int64], expected: NDArray[np.float64], *, seed: int, epoch: int, place: int, lap: int
) -> Draws:
    """The draws of a window: of each class, samples x expected draws, rounded up or down at random.

    Up with the probability of what is lost by rounding down, so that the expected number is kept exactly: a class
    that occurs once in each of many windows is not rounded away.
    """
    exact = samples * expected
    down = np.floor(exact)
    up = generator(Choice.ROUND, seed, epoch, lap, place).random(len(samples)) < exact - down
    return Draws.whole(place, lap, samples, (down + up).astype(np.int64))


def times_drawn(part: Draws, pick: np.random.Generator) -> NDArray[np.int64]:
    """How often a worker draws each sample of a window (samples of the first class, then of the second, ...).

    The samples of a class are all drawn equally often, and as many as remain once more, chosen by `pick`. Of a window
    that is shared the draws are shuffled by it too, and the worker's range is counted.
    """
    times = []
    for samples, draws in zip(part.samples, part.draws, strict=True):
        full, more = divmod(int(draws), int(samples)) if samples else (0, 0)
        own = np.full(samples, full)
        if more:
            own[pick.choice(samples, more, replace=False)] += 1
        times.append(own)
    every = np.concatenate(times)
    if part.is_whole:
        return every
    shuffled = pick.permutation(np.repeat(np.arange(len(every)), every))
    return np.bincount(shuffled[part.begin : part.end], minlength=len(every))


def deal(parts: Sequence[Draws], *, rank: int, workers: int, seed: int, epoch: int) -> list[Draws]:
    """One worker's windows, of all shuffled: their draws are cut into as many equal ranges as there are workers.

    A window that lies across a cut is read by both workers. No draw is lost or made twice, and the numbers of draws
    differ by one at the most: rare classes keep their frequency however few and unequal the windows are.
    """
    total = sum(part.total for part in parts)
    first, last = total * rank // workers, total * (rank + 1) // workers
    own = []
    before = 0
    for position in generator(Choice.DEAL, seed, epoch).permutation(len(parts)):
        part = parts[position]
        begin, end = max(first - before, 0), min(last - before, part.total)
        if begin < end:
            own.append(replace(part, begin=begin, end=end))
        before += part.total
    return own


def epoch_of(
    samples: NDArray[np.int64], *, frequencies: Frequencies, seed: int, epoch: int, rank: int, workers: int
) -> Iterator[Draws]:
    """The windows that one worker draws from, in its order, without end: those it was dealt, again and again.

    Every pass over them, a lap, has other draws. A worker that was dealt none takes all.

    Args:
        samples: samples of every window and class (window, class); at least one.
        frequencies: how often the classes are drawn.
        seed: the run's seed.
        epoch: counted from 0.
        rank: the worker, of `workers`.
        workers: how many there are.
    """
    expected = expected_draws(samples.sum(axis=0), frequencies)

    def draw(place: int, lap: int) -> Draws:
        return rounded_draws(samples[place], expected, seed=seed, epoch=epoch, place=place, lap=lap)

    every = [part for part in (draw(place, 0) for place in range(len(samples))) if part.total]
    own = deal(every, rank=rank, workers=workers, seed=seed, epoch=epoch) or every
    yield from own
    for lap in count(1):
        yield from (part for part in (draw(part.place, lap) for part in own) if part.total)


def grouped(parts: Iterable[Draws], *, size: Callable[[Draws], int], limit: int) -> Iterator[Group]:
    """Windows as they come, as many together as `limit` holds of their sizes, at least one; no lap's with the next one's."""
    held: list[Draws] = []
    number = used = 0
    for part in parts:
        if held and (used + size(part) > limit or part.lap != held[0].lap):
            yield Group(number, tuple(held))
            held, used, number = [], 0, number + 1
        held.append(part)
        used += size(part)
    if held:
        yield Group(number, tuple(held))


def between(groups: Iterable[Group], start: int, stop: int | None = None) -> Iterator[tuple[Group, int, int]]:
    """The groups that hold the draws [start, stop) of all, each with the range of its own draws that lie there."""
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
