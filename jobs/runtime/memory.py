"""Peak memory of this process and its descendants, Ray's processes included. Uses psutil."""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType

import psutil

#: Sampling interval in seconds. Each sample makes the kernel walk every process's pages, which slows them down.
INTERVAL = 2.0


def memory_in_use() -> int:
    """Return the memory in bytes used by this process and its descendants.

    Proportional set size where available (Linux), so memory shared between processes counts once;
    resident set size elsewhere, where it counts in each process.
    """
    root = psutil.Process()
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except psutil.Error:
            continue  # the process has ended or is not accessible
    return total


class PeakMemory:
    """Sample `memory_in_use` in a thread while the block runs; `bytes` is the maximum seen.

    `interval` is the sampling interval in seconds. Blocks that run at the same time share their samples.
    """

    _lock = threading.Lock()
    _blocks = 0  #: number of blocks that are running
    _sample = (-math.inf, 0)  #: the last sample: its time, and bytes

    def __init__(self, *, interval: float = INTERVAL) -> None:
        self.bytes = 0
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        with self._lock:
            PeakMemory._blocks += 1
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._look()  # guarantees one sample, even for a short block
        with self._lock:
            PeakMemory._blocks -= 1

    def _look(self) -> None:
        with self._lock:
            if self._blocks == 1 or time.monotonic() - self._sample[0] > self._interval:
                PeakMemory._sample = time.monotonic(), memory_in_use()
            self.bytes = max(self.bytes, self._sample[1])

    def _watch(self) -> None:
        while True:
            self._look()
            if self._stop.wait(self._interval):
                return
