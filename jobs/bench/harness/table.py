"""Rows of a benchmark table: a rate, its ratio to a named baseline, and the share of time spent waiting for data."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.bench.harness.timing import Timing


@dataclass(frozen=True)
class Row:
    """One row of the table; rates in patches (samples) per second, median and range over rounds."""

    what: str
    rate: float
    slowest: float
    fastest: float
    baseline: str
    ratio: float  #: to the baseline, within each round
    waits: float | None = None  #: share of time that the network waited for its next batch


def row(timing: Timing, baseline: Timing, *, waits: Sequence[float] = ()) -> Row:
    """Return the row of a timing; `waits` holds the wait share of each round."""
    share = statistics.median(waits) if waits else None
    return Row(timing.name, timing.rate, min(timing.rates), max(timing.rates), baseline.name, timing.ratio(baseline), share)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Format the rows as lines of text."""
    width = max(24, *(len(row.what) + 1 for row in rows))
    yield f"{'':<{width}}{'per second':>11} {'range':>19}   waits  ratio"
    for each in rows:
        waits = "" if each.waits is None else f"{each.waits:.1%}"
        yield (
            f"{each.what:<{width}}{each.rate:>11,.0f} {each.slowest:>9,.0f}-{each.fastest:<9,.0f} {waits:>6}  "
            f"{each.ratio:.2f}x {each.baseline}"
        )
