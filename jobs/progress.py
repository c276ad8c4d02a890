"""Progress bars on standard error: one for each piece of long work. rich draws them.

Where standard error is not a terminal a line is printed when a piece of work begins, and one for each epoch of a training.
For machines all of that are JSON lines (`jobs.logs`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from jobs.logs import event, in_json
from mibf.discreet import told

console = Console(stderr=True)


def counted(number: int, things: str) -> str:
    """A number of things, which are given in the plural: `1 tile`, `1,200 tiles`."""
    return f"{number:,} {things if number != 1 else things.removesuffix('s')}"


@contextmanager
def bar(title: str, total: int, *, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A bar that ends at `total`; the value is a function to advance it by some units."""
    if in_json() or not console.is_terminal:
        say(f"{title} ({counted(total, unit)}) ...")
        yield lambda count: None
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


_warned: list[str] = []


def warn(line: str) -> None:
    """A warning to the person, kept for the record of the stage."""
    line = told(line)
    _warned.append(line)
    if in_json():
        event(line, level="warning")
    else:
        say(f"warning: {line}")


def taken_warnings() -> list[str]:
    """The warnings since the last call."""
    taken = list(_warned)
    _warned.clear()
    return taken


def say(line: str) -> None:
    """A line to the person, on standard error; words of a stranger's file cannot move the cursor."""
    if in_json():
        event(line)
        return
    console.print(told(line), highlight=False, soft_wrap=True, markup=False)


class TrainingBar:
    """How far a training is: samples, throughput, share of time spent waiting for data, time left, the last epoch's line."""

    def __init__(
        self, progress: _TrainingProgress | None, total: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """See `training_bar`; without `progress` only epochs are told, one line each."""
        self._progress = progress
        self._total = total
        self._clock = clock
        self._first: tuple[float, int] | None = None  #: when this process began to count, and the samples seen by then
        self._seen = 0
        self._waiting = 0.0

    def seen(self, samples: int, *, waiting: float) -> None:
        """Tell how many samples were seen so far in all, and the share of the time so far spent waiting for data, 0 to 1.

        The first call only sets the start: a resumed training tells first what was seen before it, so that
        the throughput counts this process's samples alone.
        """
        self._seen, self._waiting = samples, waiting
        self._first = self._first or (self._clock(), samples)
        if self._progress is not None:
            self._progress.pace = self.pace()
            self._progress.update(self._progress.task_ids[0], completed=samples)

    def epoch(self, text: str) -> None:
        """Tell of a finished epoch, such as `epoch 3 of 10: validation overall accuracy 0.781`."""
        if self._progress is not None:
            self._progress.epoch = text
            self._progress.refresh()
            return
        pace = self.pace()
        say(f"{text}, {pace}" if pace else text)

    def pace(self) -> str:
        """Throughput, waiting and time left in words; empty while this process saw nothing."""
        if self._first is None:
            return ""
        seconds, samples = self._clock() - self._first[0], self._seen - self._first[1]
        if seconds <= 0 or samples <= 0:
            return ""
        rate = samples / seconds
        left = max(self._total - self._seen, 0) / rate
        ending = f", about {_duration(left)} left" if left else ""
        return f"{rate:,.0f} samples/s, waiting {100 * self._waiting:.1f} %{ending}"


class _TrainingProgress(Progress):
    """A bar with a line below it for the pace, and one for the last epoch."""

    pace = ""
    epoch = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar, and the lines that there are."""
        yield self.make_tasks_table(self.tasks)
        for line in (self.pace, self.epoch):
            if line:
                yield Text(line, no_wrap=True, overflow="ellipsis")


@contextmanager
def training_bar(title: str, total: int) -> Iterator[TrainingBar]:
    """A bar of a training that ends at `total` samples over all its epochs."""
    if in_json() or not console.is_terminal:
        say(f"{title} ({total:,} samples) ...")
        yield TrainingBar(None, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} samples"),
        TimeElapsedColumn(),
    )
    with _TrainingProgress(*columns, console=console) as progress:
        progress.add_task(title, total=total)
        yield TrainingBar(progress, total)


def _duration(seconds: float) -> str:
    """A time in words, as exact as an estimate is."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
