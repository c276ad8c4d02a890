"""Peak memory of this process and its descendants, Ray's processes included. Uses psutil."""

from __future__ import annotations

import threading
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

    `interval` is the sampling interval in seconds.
    """

    def __init__(self, *, interval: float = INTERVAL) -> None:
        self.bytes = 0
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, memory_in_use())  # guarantees one sample, even for a short block

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, memory_in_use())
            if self._stop.wait(self._interval):
                return
