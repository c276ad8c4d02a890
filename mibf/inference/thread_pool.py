"""Run independent work items on the CPU's cores, one thread each. Torch only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch

Item = TypeVar("Item")
#: Only one caller uses the cores at a time; a second one would only use more memory.
_CORES = Lock()


def parallel_for(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Call `work` on every item in parallel, as many at a time as torch has threads, each on one thread.

    For small operations this is faster than torch's own scheme, all threads on one operation after the other, and the
    result of an operation cannot depend on the number of threads. The first exception of an item is raised; items not
    yet started are then cancelled. Meanwhile, torch is set to one thread for all threads of the process.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not items:
        for item in items:
            work(item)
        return
    with _CORES, ThreadPoolExecutor(threads, "mibf", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for _ in pool.map(work, items):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # torch's number is process-wide, whichever thread sets it
