"""Apply a function to items in several threads, a bounded number of items ahead of the consumer, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Room(Protocol):
    """Room for a number of items."""

    def acquire(self, *, blocking: bool) -> bool:
        """Take room for one item; without `blocking` return False if there is none."""

    def release(self) -> None:
        """Give back the room of an item."""


def read_ahead(
    read: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    depth: int,
    room: Room,
    name: str,
) -> Generator[Result, None, None]:
    """Yield `read(item)` of each item in order, while those after it are read.

    Nothing is read before the first result is requested, and no thread is left once the generator is closed. An error is
    raised in its turn, and ends the generator.

    Args:
        read: called in the threads.
        items: iterated where results are requested.
        threads: number of threads.
        depth: results that are being read or wait, besides those that were yielded.
        room: acquired for each item before it is read. The consumer releases it for each result that it was given; the
            others are released here. Generators that share it cannot block each other: one waits for room only while it
            holds no result that its consumer still has to take.
        name: first part of the threads' names.
    """
    waiting: deque[Future[Result]] = deque()
    left = iter(items)
    with ThreadPoolExecutor(threads, name) as pool:

        def fill(*, wait: bool) -> None:
            """Begin to read as many items as there is room for; `wait` for room for one if none is being read or waits."""
            while len(waiting) < depth and room.acquire(blocking=wait and not waiting):
                try:
                    item = next(left)
                except StopIteration:
                    room.release()
                    return
                except BaseException as error:  # raised in its turn
                    failed: Future[Result] = Future()
                    failed.set_exception(error)
                    waiting.append(failed)
                else:
                    waiting.append(pool.submit(read, item))

        try:
            fill(wait=True)
            while waiting:
                result = waiting[0].result()
                waiting.popleft()
                fill(wait=False)
                yield result
                del result  # otherwise it stays in memory while the next one is awaited
                fill(wait=True)
        finally:
            for each in waiting:
                each.cancel()
            pool.shutdown()  # waits for those that have begun
            for _ in waiting:
                room.release()
