"""Background iteration: same items, never more than `depth` ahead, failures passed on, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from pipeline.parallel.prefetch import PrefetchThreads


def numbers(count: int, made: list[int] | None = None) -> Generator[int, None, None]:
    for number in range(count):
        if made is not None:
            made.append(number)
        yield number


def alive(name: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == name]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_items_are_the_same_in_the_same_order(depth: int, count: int) -> None:
    assert list(PrefetchThreads().prefetch(numbers(count), depth=depth, name="same")) == list(range(count))
    assert not alive("same")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_no_more_than_depth_items_exist_besides_the_one_in_use(depth: int) -> None:
    made: list[int] = []
    items = PrefetchThreads().prefetch(numbers(50, made), depth=depth, name="bounded")
    for number in items:
        time.sleep(0.002)
        assert len(made) <= number + 1 + depth


def test_prefetch_is_limited_to_depth() -> None:
    made: list[int] = []
    items = PrefetchThreads().prefetch(numbers(10, made), depth=3, name="limited")
    assert next(items) == 0
    time.sleep(0.1)
    assert made == [0, 1, 2, 3]
    items.close()
    assert not alive("limited")


def test_nothing_is_produced_before_the_first_request() -> None:
    made: list[int] = []
    items = PrefetchThreads().prefetch(numbers(3, made), depth=2, name="lazy")
    assert not made
    assert not alive("lazy")
    items.close()


def test_original_exception_is_raised_after_the_items_before_it() -> None:
    error = ValueError("third")

    def failing() -> Generator[int, None, None]:
        yield from range(2)
        raise error

    items = PrefetchThreads().prefetch(failing(), depth=1, name="failing")
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="third") as raised:
        next(items)
    assert raised.value is error
    assert not alive("failing")


def test_closing_early_closes_the_generator_and_ends_all_threads_of_a_chain() -> None:
    closed: list[str] = []

    def endless() -> Generator[int, None, None]:
        try:
            yield from iter(int, 1)
        finally:
            closed.append(threading.current_thread().name)

    threads = PrefetchThreads()
    inner = threads.prefetch(endless(), depth=1, name="inner")
    outer = threads.prefetch(inner, depth=1, name="outer")
    assert next(outer) == 0
    outer.close()
    assert closed == ["inner"], "the generator runs and ends in its own thread"
    assert not alive("inner") + alive("outer")
