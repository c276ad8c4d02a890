"""Independent pieces of work on a processor's cores, one thread each. Torch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

import torch

Item = TypeVar("Item")

#: One caller has the cores at a time; a second one would only add to memory.
_CORES = Lock()


def side_by_side(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Do a piece of work for every item, as many at a time as torch has threads, each on one thread.

    Faster than torch's own way, all threads on one operation after the other, where operations are small; and what
    an operation gives cannot depend on the number of threads. The first exception of a piece is raised; those
    not begun are left out then. Meanwhile other threads of the process find torch set to one thread.
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
            torch.set_num_threads(threads)  # torch's number is the whole process's, whichever thread sets it
