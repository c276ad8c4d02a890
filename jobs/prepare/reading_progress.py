"""Progress of a long read, in shards, items and bytes, with the time left from the rate of this process.

On a terminal it is a live bar; elsewhere a line at the start and then one every `REPORT_SECONDS` at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from jobs.runtime import progress
from jobs.runtime.logs import event, in_json
from jobs.runtime.progress import LinesProgress, format_left, info, pluralize
from pipeline.store.reading import Reading

#: Seconds between two lines where there is no terminal.
REPORT_SECONDS = 30.0


class ReadingBar:
    """The progress of a read; create it with `reading_bar`."""

    def __init__(
        self,
        bar: LinesProgress | None,
        title: str,
        total: Reading,
        *,
        workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start at the first call of `advance`; without a bar print lines."""
        self._bar, self._title, self._total, self._workers, self._clock = bar, title, total, workers, clock
        self._done = Reading()
        self._start: tuple[float, Reading] | None = None  #: time, and what was there before
        self._reported = 0.0

    def advance(self, done: Reading) -> None:
        """Add what is done; the first call has what an interrupted run left, which does not count for the rate."""
        self._done += done
        now = self._clock()
        if self._start is None:
            self._start, self._reported = (now, self._done), now
            if done.shards and self._bar is None:
                info(f"{self._title}: {pluralize(done.shards, 'shards')} of {self._total.shards:,} are there already")
        if self._bar is not None:
            self._bar.pace = self.describe()
            self._bar.update(self._bar.task_ids[0], completed=self._done.shards)
        elif now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._report()

    def seconds_left(self) -> float | None:
        """Return an estimate; None until every worker could have completed a shard, and at the end."""
        if self._start is None:
            return None
        seconds, own, left = self._clock() - self._start[0], self._done - self._start[1], self._total - self._done
        if own.shards < self._workers or seconds <= 0 or not left.shards:
            return None
        # Shards outside the area read nothing, and take no time.
        return seconds * (left.bytes / own.bytes if own.bytes else left.shards / own.shards)

    def describe(self) -> str:
        """Format as in `12 of 64 shards, 3.1 of 16.2 GB in 240 of 1,240 reads of items, about 9 min left`."""
        done, total, left = self._done, self._total, self.seconds_left()
        ending = "" if left is None else f", about {format_left(left)} left"
        return (
            f"{done.shards:,} of {pluralize(total.shards, 'shards')}, {_of(done.bytes, total.bytes)} in {done.items:,} of "
            f"{total.items:,} reads of items{ending}"
        )

    def _report(self) -> None:
        line = f"{self._title}: {self.describe()}"
        if not in_json():
            info(line)
            return
        values = {
            f"{name}_{what}": getattr(reading, name)
            for name in ("shards", "items", "bytes")
            for what, reading in (("done", self._done), ("total", self._total))
        }
        event(line, **values, seconds_left=self.seconds_left())


@contextmanager
def reading_bar(title: str, total: Reading, *, workers: int) -> Iterator[ReadingBar]:
    """Show the progress of a read of so much, by so many workers."""
    if in_json() or not progress.draws_bars():
        what = f"{_of(total.bytes)} of pixels in {total.items:,} reads of items"
        info(f"{title} ({pluralize(total.shards, 'shards')}, {what}) ...")
        yield ReadingBar(None, title, total, workers=workers)
        return
    columns = (
        TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"), TimeElapsedColumn(),
    )  # fmt: skip  # a list of columns
    with LinesProgress(*columns, console=progress.console) as bar:
        bar.add_task(title, total=total.shards)
        yield ReadingBar(bar, title, total, workers=workers)


def _of(*counts: int) -> str:
    """Format bytes, or some of all, in the unit that suits the largest."""
    size, unit = next((pair for pair in ((1e12, "TB"), (1e9, "GB")) if counts[-1] >= pair[0]), (1e6, "MB"))
    return f"{' of '.join(f'{count / size:,.1f}' for count in counts)} {unit}"
