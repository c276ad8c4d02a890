"""Iterate in background threads, a bounded number of items ahead of the consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """The end of the items: all were produced, or producing the next one failed."""

    failure: BaseException | None = None


@dataclass
class PrefetchThreads:
    """Threads of a chain of `prefetch` generators, each feeding the next; they end together."""

    stop: threading.Event = field(default_factory=threading.Event)  #: set when no more items are needed: check it to stop
    threads: list[threading.Thread] = field(default_factory=list)

    def prefetch(self, items: Generator[T, None, None], *, depth: int, name: str) -> Generator[T, None, None]:
        """Produce a generator's items in a thread, up to `depth` ahead: no more exist besides the one in use.

        The thread starts when the first item is requested, and has ended once the outermost generator is closed.

        Args:
            items: run and closed in the thread only.
            depth: items that are being produced or waiting.
            name: name of the thread.

        Raises:
            BaseException: whatever producing an item raised: the original exception, with its cause and traceback, once the
                items before it are consumed.
        """
        ready: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        room = threading.Semaphore(depth)  # acquired before an item is started, not when it is done, to bound the memory

        def make() -> None:
            end = _End()
            try:
                while room.acquire() and not self.stop.is_set():
                    try:
                        item = next(items)
                    except StopIteration:
                        break
                    ready.put(item)
                    del item  # otherwise it stays in memory while the next one is produced
                items.close()
            except BaseException as error:  # raised again in the consumer
                end = _End(error)
            ready.put(end)

        thread = threading.Thread(target=make, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()
        try:
            while True:
                item = ready.get()
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
            # The garbage collector may close a generator in any thread: one of these threads must not wait for the others.
            if threading.current_thread() not in self.threads:
                for each in self.threads:
                    each.join()
