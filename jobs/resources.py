"""Peak memory of this process and all that it started, Ray's processes included. psutil reads it."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

#: Seconds between two looks. Each makes the system walk the pages of every process, which holds them up.
INTERVAL = 2.0


def memory_in_use() -> int:
    """Bytes of memory of this process and its descendants.

    Proportional set size where the system tells it (Linux), so that memory shared between
    processes counts once; resident set size elsewhere, where it counts in each.
    """
    root = psutil.Process()
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except psutil.Error:
            continue  # it ended meanwhile, or is not ours to look at
    return total


class PeakMemory:
    """Watches `memory_in_use` from a thread while the block runs; `bytes` is the most that was seen.

    `interval` is in seconds from one look to the next.
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
        self.bytes = max(self.bytes, memory_in_use())  # a short block is seen at its end at least

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, memory_in_use())
            if self._stop.wait(self._interval):
                return
