"""Timing of several pieces of work against each other on a machine whose speed wanders."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A piece of work that is timed: one call does `units` of it (pixels, samples, operations)."""

    name: str
    units: float
    work: Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """The rates of a case, one a round, in units a second."""

    name: str
    rates: tuple[float, ...]

    @property
    def rate(self) -> float:
        """The median rate."""
        return statistics.median(self.rates)

    def ratio(self, baseline: Timing) -> float:
        """How many times as fast as a baseline: the median over rounds, each against the same round's."""
        return statistics.median(own / other for own, other in zip(self.rates, baseline.rates, strict=True))


def measure(cases: Sequence[Case], *, rounds: int, each: Callable[[], None] = lambda: None) -> dict[str, Timing]:
    """Time all cases in turn, `rounds` times over after one that is not counted.

    A slow spell of the machine so falls on neighbours alike, and the ratio of a round keeps clear of it.
    """
    rates: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            seconds = _seconds(case.work)
            if number:
                rates[case.name].append(case.units / seconds)
        each()
    return {name: Timing(name, tuple(found)) for name, found in rates.items()}


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    """Until a GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
