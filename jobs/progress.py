"""Progress bars on standard error: one for each piece of long work. rich draws them.

Where standard error is not a terminal a line is printed when a piece of work begins and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextmanager
def bar(title: str, total: int, *, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A bar that ends at `total`; the value is a function to advance it by some units."""
    if not console.is_terminal:
        console.print(f"{title} ({total:,} {unit}) ...", highlight=False)
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
    _warned.append(line)
    say(f"warning: {line}")


def taken_warnings() -> list[str]:
    """The warnings since the last call."""
    taken = list(_warned)
    _warned.clear()
    return taken


def say(line: str) -> None:
    """A line to the person, on standard error."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)
