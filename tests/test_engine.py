"""Engines carry out every item once, and stop at a failure without leaving work behind."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.engine import Threads


def test_every_result_is_taken_once_one_at_a_time() -> None:
    taken: list[int] = []
    inside = threading.Lock()

    def take(value: int) -> None:
        assert inside.acquire(blocking=False), "two results at once"
        time.sleep(0.0005)
        taken.append(value)
        inside.release()

    Threads(4).each(lambda shared, item: shared * item, 3, list(range(100)), take)
    assert sorted(taken) == [3 * i for i in range(100)]


def test_a_failure_is_raised_once_nothing_is_at_work_any_more() -> None:
    at_work, begun = set[int](), list[int]()

    def work(_: None, item: int) -> None:
        begun.append(item)
        at_work.add(item)
        time.sleep(0.02)
        at_work.discard(item)
        if item == 3:
            raise ValueError("item 3")

    with pytest.raises(ValueError, match="item 3"):
        Threads(2).each(work, None, list(range(200)), lambda _: None)
    assert not at_work
    assert sorted(begun) == list(range(len(begun))), "items are begun in their order"
    assert len(begun) < 20
    time.sleep(0.1)
    assert len(begun) < 20
