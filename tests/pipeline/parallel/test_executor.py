"""Executors process every item once, and stop at a failure without leaving items running."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.parallel.executor import ThreadExecutor


def test_every_result_is_handled_once_and_never_concurrently() -> None:
    taken: list[int] = []
    inside = threading.Lock()

    def take(value: int) -> None:
        assert inside.acquire(blocking=False), "two results are handled at the same time"
        time.sleep(0.0005)
        taken.append(value)
        inside.release()

    ThreadExecutor(4).each(lambda shared, item: shared * item, 3, list(range(100)), take)
    assert sorted(taken) == [3 * i for i in range(100)]


def test_failure_is_raised_after_running_items_finish() -> None:
    running, started = set[int](), list[int]()

    def work(_: None, item: int) -> None:
        started.append(item)
        running.add(item)
        time.sleep(0.02)
        running.discard(item)
        if item == 3:
            raise ValueError("item 3")

    with pytest.raises(ValueError, match="item 3"):
        ThreadExecutor(2).each(work, None, list(range(200)), lambda _: None)
    assert not running
    assert sorted(started) == list(range(len(started))), "items start in order"
    assert len(started) < 20
    time.sleep(0.1)
    assert len(started) < 20
