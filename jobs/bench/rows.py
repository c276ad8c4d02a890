"""Lines of a benchmark's table: a rate, its ratio to a named baseline, and what of the time was waiting for data."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.bench.timing import Timing


@dataclass(frozen=True)
class Row:
    """One line of the table; rates in patches (samples) a second, the median and the range over rounds."""

    what: str
    rate: float
    slowest: float
    fastest: float
    baseline: str
    ratio: float  #: against the baseline of the same round
    waits: float | None = None  #: share of the time in which the network waited for its next batch


def row(timing: Timing, baseline: Timing, *, waits: Sequence[float] = ()) -> Row:
    """The line of a timing; `waits` are the shares of its rounds."""
    share = statistics.median(waits) if waits else None
    return Row(timing.name, timing.rate, min(timing.rates), max(timing.rates), baseline.name, timing.ratio(baseline), share)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as text."""
    width = max(24, *(len(row.what) + 1 for row in rows))
    yield f"{'':<{width}}{'per second':>11} {'range':>19}   waits  ratio"
    for each in rows:
        waits = "" if each.waits is None else f"{each.waits:.1%}"
        yield (
            f"{each.what:<{width}}{each.rate:>11,.0f} {each.slowest:>9,.0f}-{each.fastest:<9,.0f} {waits:>6}  "
            f"{each.ratio:.2f}x {each.baseline}"
        )
