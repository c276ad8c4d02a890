"""Time several functions against each other on a machine whose speed varies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A function to time: one call processes `units` units (pixels, samples, operations)."""

    name: str
    units: float
    work: Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Rates of a case in units per second, one per round."""

    name: str
    rates: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Median rate."""
        return statistics.median(self.rates)

    def ratio(self, baseline: Timing) -> float:
        """Return the speed relative to a baseline: the median over rounds of the ratio within each round."""
        return statistics.median(own / other for own, other in zip(self.rates, baseline.rates, strict=True))


def measure(cases: Sequence[Case], *, rounds: int, each: Callable[[], None] = lambda: None) -> dict[str, Timing]:
    """Time all cases in turn for `rounds` rounds, after one warm-up round.

    A slow period of the machine then affects all cases of a round alike and hardly changes their ratios.
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
    """Wait until the GPU, if present, has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
