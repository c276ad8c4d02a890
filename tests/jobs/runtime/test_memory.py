"""Peak memory of a process and its descendants."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest

from jobs.runtime.memory import PeakMemory, memory_in_use

MIB = 2**20


def test_peak_is_the_largest_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, sampled = iter([5, 9]), threading.Event()

    def memory() -> int:
        found = next(samples, None)
        if found is None:
            sampled.set()
        return found or 3

    monkeypatch.setattr("jobs.runtime.memory.memory_in_use", memory)
    with PeakMemory(interval=0.001) as peak:
        assert sampled.wait(30)
    assert peak.bytes == 9


def test_memory_is_sampled_even_in_a_short_block() -> None:
    with PeakMemory(interval=3600) as peak:
        pass
    assert peak.bytes > MIB


def test_memory_of_descendants_counts() -> None:
    program = f"held = b'x' * (64 * {MIB}); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = memory_in_use()
    finally:
        child.kill()
        child.communicate()
    assert with_child - memory_in_use() > 32 * MIB


def test_ended_process_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended() -> None:
        raise psutil.NoSuchProcess(1)

    def running(**memory: int) -> SimpleNamespace:
        return SimpleNamespace(memory_full_info=lambda: SimpleNamespace(**memory))

    root = running(pss=10, rss=100)
    root.children = lambda recursive: [SimpleNamespace(memory_full_info=ended), running(rss=1)]
    monkeypatch.setattr(psutil, "Process", lambda: root)
    assert memory_in_use() == 11, "the proportional set size where there is one, else the resident set size"
