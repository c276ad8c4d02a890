"""Signals that end a command: SIGTERM does what Ctrl-C does, so that leases, workers and child processes end with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

#: What an interrupted command says.
INTERRUPTED = "interrupted; run the same command again to resume."


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block let SIGTERM do what Ctrl-C does; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # SIGINT is ignored, as in the background jobs of a shell script
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)  # Ray Train installs its own


def kill_children(*, of: int | None = None, spared: Collection[psutil.Process] = ()) -> None:
    """Kill the processes that process `of` (default this one) started, and theirs, except those in `spared`."""
    for process in psutil.Process(of).children(recursive=True):
        if process not in spared:
            with suppress(psutil.Error):
                process.kill()
