"""Progress bars on standard error, one per long operation. Uses rich.

If standard error is not a terminal, print one line at the start of each operation and one per training epoch.
With the JSON log format these are JSON lines (`jobs.runtime.logs`).
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import PurePath

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from jobs.runtime.logs import event, in_json
from mibf.redaction import redact

console = Console(stderr=True)
#: Held while a bar is shown. A terminal shows one at a time; operations beside it print a line.
_bar_shown = threading.Lock()


def draws_bars() -> bool:
    """Whether bars can be drawn: on a terminal. Notebooks set FORCE_COLOR, which rich takes for one."""
    return console.is_terminal and console.file.isatty()


def pluralize(number: int, things: str) -> str:
    """Format a count with its plural noun, singular for 1: `1 tile`, `1,200 tiles`."""
    return f"{number:,} {things if number != 1 else things.removesuffix('s')}"


@contextmanager
def progress_bar(title: str, total: int, *, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Show a progress bar up to `total`; yield a function that advances it by a number of units."""
    plain = in_json() or not draws_bars() or _output.get().prefix
    if plain or not _bar_shown.acquire(blocking=False):
        info(f"{title} ({pluralize(total, unit)}) ...")
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
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total)
            yield lambda count: progress.advance(task, count)
    finally:
        _bar_shown.release()


@dataclass(frozen=True)
class _Output:
    """What belongs to one of several runs in this process."""

    prefix: str = ""
    warned: list[str] = field(default_factory=list)


_output: ContextVar[_Output] = ContextVar("output", default=_Output())  # noqa: B039  # shared where there is one run


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put a prefix before every line of the block, in place of bars, and keep its warnings apart."""
    token = _output.set(_Output(prefix))
    try:
        yield
    finally:
        _output.reset(token)


def warn(line: str) -> None:
    """Print a warning and record it for the stage's manifest."""
    line = redact(line)
    _output.get().warned.append(line)
    if in_json():
        event(line, level="warning")
    else:
        info(f"warning: {line}")


def take_warnings() -> list[str]:
    """Return and clear the warnings recorded since the last call."""
    warned = _output.get().warned
    taken = list(warned)
    warned.clear()
    return taken


def info(line: str) -> None:
    """Print a line to standard error; control characters (from untrusted files) are escaped."""
    if in_json():
        event(line)
        return
    prefix = _output.get().prefix
    text = "\n".join(f"{prefix}{part}" for part in redact(line).split("\n"))
    console.print(text, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def library_messages() -> Iterator[None]:
    """In the block, print warnings of libraries, and what they log without a handler of their own, as lines of ours.

    Both may contain URLs with credentials. They are not recorded in manifests.
    """

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        place = "/".join(PurePath(filename).parts[-2:])
        _report(f"{message} ({category.__name__}, {place}:{lineno})")

    before = logging.lastResort
    handler = _LibraryLog(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logging.lastResort = handler
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]  # Python passes its arguments by position
            yield
    finally:
        logging.lastResort = before


class _LibraryLog(logging.Handler):
    """Prints records of libraries as warnings, with their tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        _report(self.format(record))


def _report(text: str) -> None:
    """Print a warning without recording it."""
    if in_json():
        event(text, level="warning")
    else:
        info(f"warning: {text}")


class TrainingBar:
    """Training progress: samples, throughput, share of time waiting for data, time left, line of the last epoch."""

    def __init__(self, progress: LinesProgress | None, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Create through `training_bar`; without `progress`, print only one line per epoch."""
        self._progress = progress
        self._total = total
        self._clock = clock
        self._first: tuple[float, int] | None = None  #: start time and sample count of this process
        self._seen = 0
        self._waiting = 0.0

    def seen(self, samples: int, *, waiting: float) -> None:
        """Update the total number of samples seen and the share of time spent waiting for data, 0 to 1.

        The first call only sets the start: a resumed training first reports the samples seen before it, so the
        throughput counts only this process's samples.
        """
        self._seen, self._waiting = samples, waiting
        self._first = self._first or (self._clock(), samples)
        if self._progress is not None:
            self._progress.pace = self.pace()
            self._progress.update(self._progress.task_ids[0], completed=samples)

    def epoch(self, text: str) -> None:
        """Report a finished epoch, such as `epoch 3 of 10: validation overall accuracy 0.781`."""
        if self._progress is not None:
            self._progress.epoch = text
            self._progress.refresh()
            return
        pace = self.pace()
        info(f"{text}, {pace}" if pace else text)

    def pace(self) -> str:
        """Format throughput, waiting share and time left; empty until this process has seen samples."""
        if self._first is None:
            return ""
        seconds, samples = self._clock() - self._first[0], self._seen - self._first[1]
        if seconds <= 0 or samples <= 0:
            return ""
        rate = samples / seconds
        left = max(self._total - self._seen, 0) / rate
        ending = f", about {format_left(left)} left" if left else ""
        return f"{rate:,.0f} samples/s, waiting {100 * self._waiting:.1f} %{ending}"


class LinesProgress(Progress):
    """A progress bar with a line for the throughput and, of training, a line for the last epoch below it."""

    pace = ""
    epoch = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bar and its non-empty lines."""
        yield self.make_tasks_table(self.tasks)
        for line in (self.pace, self.epoch):
            if line:
                yield Text(line, no_wrap=True, overflow="ellipsis")


@contextmanager
def training_bar(title: str, total: int) -> Iterator[TrainingBar]:
    """Show a training progress bar up to `total` samples over all epochs."""
    if in_json() or not draws_bars():
        info(f"{title} ({total:,} samples) ...")
        yield TrainingBar(None, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} samples"),
        TimeElapsedColumn(),
    )
    with LinesProgress(*columns, console=console) as progress:
        progress.add_task(title, total=total)
        yield TrainingBar(progress, total)


def format_left(seconds: float) -> str:
    """Format an estimated duration in seconds, rounded to the precision of an estimate."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
