"""Iteration in background threads, a bounded number of items ahead of who takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """No item follows: all were taken, or the making of the next one failed."""

    failure: BaseException | None = None


@dataclass
class Background:
    """Threads that work for one another, in a chain of `ahead`; they end together."""

    stop: threading.Event = field(default_factory=threading.Event)  #: set when nobody wants more: look at it to end early
    threads: list[threading.Thread] = field(default_factory=list)

    def ahead(self, items: Generator[T, None, None], *, depth: int, name: str) -> Generator[T, None, None]:
        """The items of a generator, made by a thread up to `depth` ahead: no more exist beside the one in use.

        The thread starts with the first item that is asked for, and has ended once the outermost generator is closed.

        Args:
            items: run and closed in the thread alone.
            depth: items that are being made or wait.
            name: of the thread.

        Raises:
            BaseException: whatever making an item raised: that very exception, with its cause and its traceback, once
                the items before it are taken.
        """
        made: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        room = threading.Semaphore(depth)  # taken before an item is begun, not when it is done: so it bounds the memory

        def make() -> None:
            end = _End()
            try:
                while room.acquire() and not self.stop.is_set():
                    try:
                        item = next(items)
                    except StopIteration:
                        break
                    made.put(item)
                    del item  # it would live on while the next one is made
                items.close()
            except BaseException as error:  # it is raised where the items are taken
                end = _End(error)
            made.put(end)

        thread = threading.Thread(target=make, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()
        try:
            while True:
                item = made.get()
                if isinstance(item, _End):
                    if item.failure is not None:
                        raise item.failure
                    return
                room.release()
                yield item
                del item
        except BaseException:  # closed early, or failed
            self.stop.set()
            raise
        finally:
            room.release()
            # The garbage collector may close a generator in any thread: one of ours must not wait for the others.
            if threading.current_thread() not in self.threads:
                for each in self.threads:
                    each.join()
