"""Signals that end a command: SIGTERM does what Ctrl-C does, so that leases, workers and child processes end with it."""

from __future__ import annotations

import ctypes
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
    """Within the block let SIGTERM raise KeyboardInterrupt; without effect outside the main thread.

    Handlers of SIGINT are not called: Ray Train's asks Ray to abort, but a signal to the process group has ended Ray too.
    For the same reason cleaning up may fail after the signal: such errors become KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        nonlocal received
        received = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except Exception:
        if received:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def interrupt_thread(identifier: int) -> None:
    """Raise KeyboardInterrupt in a thread of this process, as Ctrl-C does in the main one: before its next bytecode."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(identifier), ctypes.py_object(KeyboardInterrupt))


def kill_children(*, of: int | None = None, spared: Collection[psutil.Process] = ()) -> None:
    """Kill the processes that process `of` (default this one) started, and theirs, except those in `spared`."""
    for process in psutil.Process(of).children(recursive=True):
        if process not in spared:
            with suppress(psutil.Error):
                process.kill()
