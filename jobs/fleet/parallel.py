"""Run many runs at a time in threads of this process, each with a prefix before its lines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from jobs.runtime.progress import prefixed
from jobs.runtime.signals import interrupt_thread

#: Seconds between looks for an interruption, and in which the runs end after one.
POLL_SECONDS, INTERRUPT_SECONDS = 0.2, 30.0
Found = TypeVar("Found")


def run_parallel(runs: Sequence[tuple[str, Callable[[], Found]]], *, parallel: int) -> list[Found]:
    """Call functions, `parallel` at a time, and return their results in order.

    Args:
        runs: the prefix of each function's lines, and the function, which raises no `Exception`.
        parallel: number of threads.

    Raises:
        KeyboardInterrupt: the command was interrupted, first in the threads, whose leases are then released.
    """
    running: set[int] = set()

    def call(prefix: str, function: Callable[[], Found]) -> Found:
        running.add(threading.get_ident())
        try:
            with prefixed(prefix):
                return function()
        finally:
            running.discard(threading.get_ident())

    pool = ThreadPoolExecutor(parallel, "mibf-run")
    pending: list[Future[Found]] = []
    try:
        for prefix, function in runs:
            pending.append(pool.submit(call, prefix, function))
        while wait(pending, timeout=POLL_SECONDS).not_done:
            pass
        return [each.result() for each in pending]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for thread in list(running):
            interrupt_thread(thread)
        wait([each for each in pending if not each.cancelled()], timeout=INTERRUPT_SECONDS)
        raise
    finally:
        pool.shutdown(wait=False)
