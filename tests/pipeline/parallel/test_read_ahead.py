"""Reading ahead in threads: in order, within its depth and room, errors in their turn, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.parallel.read_ahead import read_ahead


class CountedRoom:
    """Room for a number of items, which counts those that it holds."""

    def __init__(self, size: int) -> None:
        self.free, self.size, self.held, self.most = threading.Semaphore(size), size, 0, 0

    def acquire(self, *, blocking: bool) -> bool:
        taken = self.free.acquire(blocking=blocking)
        self.held += taken
        self.most = max(self.held, self.most)
        return taken

    def release(self) -> None:
        self.held -= 1
        self.free.release()


def left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(0, 12),
    threads=st.integers(1, 3),
    depth=st.integers(1, 5),
    size=st.integers(1, 6),
    slow=st.sets(st.integers(0, 11)),
)
def test_results_are_in_order_within_depth_and_room(count: int, threads: int, depth: int, size: int, slow: set[int]) -> None:
    room, begun, now, most = CountedRoom(size), [0], [0], [0]

    def read(number: int) -> int:
        now[0] += 1
        most[0] = max(most[0], now[0])
        if number in slow:
            time.sleep(0.001)
        now[0] -= 1
        begun[0] += 1
        return number

    found = []
    for number in read_ahead(read, range(count), threads=threads, depth=depth, room=room, name="ahead"):
        found.append(number)
        assert begun[0] <= len(found) + depth
        room.release()
    assert found == list(range(count))
    assert most[0] <= threads
    assert room.most <= min(size, depth + 1)
    assert (room.held, left()) == (0, [])


def test_next_items_are_read_while_a_result_is_used() -> None:
    read, room = [threading.Event() for _ in range(4)], CountedRoom(4)
    results = read_ahead(lambda n: read[n].set(), range(4), threads=2, depth=2, room=room, name="ahead")
    next(results)
    assert read[1].wait(5)
    assert read[2].wait(5)
    assert not read[3].is_set()
    results.close()
    assert (room.held, left()) == (1, []), "the room of the result that was taken is the consumer's"


@pytest.mark.parametrize("where", ["read", "items"])
def test_error_is_raised_in_its_turn_and_ends_all_threads(where: str) -> None:
    def items() -> Generator[int, None, None]:
        yield from range(2)
        if where == "items":
            raise ValueError("third")
        yield from range(2, 9)

    def read(number: int) -> int:
        if number == 2:
            raise ValueError("third")
        return number

    room = CountedRoom(9)
    results = read_ahead(read, items(), threads=3, depth=4, room=room, name="ahead")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="third"):
        next(results)
    assert (room.held, left()) == (2, [])


def test_calls_that_share_room_all_end() -> None:
    """With room for less than each of them reads ahead."""
    room, done = CountedRoom(3), []

    def work(_: int) -> None:
        for number in read_ahead(lambda n: n, range(20), threads=2, depth=4, room=room, name="ahead"):
            done.append(number)
            room.release()

    workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert sorted(done) == sorted([*range(20)] * 4)
