"""Separate processes for measurements; they end with the command, also when it is interrupted."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psutil

from jobs.runtime.signals import kill_children

T = TypeVar("T")


@contextmanager
def process_pool(workers: int, **options: Any) -> Iterator[ProcessPoolExecutor]:
    """Start a pool of processes. If the block is interrupted or fails, they are killed with the processes that they started.

    Args:
        workers: number of processes.
        options: `initializer` and `initargs` of the pool.
    """
    earlier = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), **options) as pool:
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - earlier:
                with suppress(psutil.Error):
                    kill_children(of=process.pid)
                process.kill()
            raise


def run_in_subprocess(work: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a separate process and return its result."""
    with process_pool(1) as pool:
        return pool.submit(work, *arguments).result()
