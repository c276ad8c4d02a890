"""Run a function over many windows: on Dask threads of this process, or on the machines of a dask.distributed cluster.

`jobs.runtime.ray_executor` does the same on a Ray cluster. The choice does not affect the results: a task depends on its
window alone, and writes whole shards.
"""

from __future__ import annotations

import copy
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import dask
from dask.delayed import delayed

from mibf import __version__
from mibf.errors import InputError
from pipeline.parallel.cpu_count import cpu_count

if TYPE_CHECKING:
    from distributed import Client


Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")
Part = TypeVar("Part")
#: Seconds to wait for a scheduler.
TIMEOUT = 10
#: Items in one Dask graph: larger graphs cost time and memory.
TASKS_IN_FLIGHT = 1000
#: Parts that one task on a cluster merges.
MERGED_AT_ONCE = 8


class Executor(ABC):
    """Runs a function over many items."""

    @property
    @abstractmethod
    def workers(self) -> int:
        """Number of items in progress at once."""

    def each(
        self,
        function: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Sequence[Item],
        take: Callable[[Result], None],
    ) -> None:
        """Call `function(shared, item)` for every item, and `take` with each result, one at a time, in order of completion.

        When a call fails, no further call starts, and its exception is raised once those in progress have finished.
        """
        self._run(function, shared, items, take, None)

    def reduce(
        self,
        function: Callable[[Shared, Item], tuple[Result, Part]],
        shared: Shared,
        items: Sequence[Item],
        take: Callable[[Result], None],
        merge: Callable[[Part, Part], Part],
    ) -> Part | None:
        """Like `each`, for calls that also return a part of a large total; return the merged parts, None without items.

        Parts are merged where they were made: only the total reaches this process.

        Args:
            function: returns a result for `take`, and a part.
            shared: passed to every call.
            items: one call each.
            take: is called with each result, one at a time.
            merge: returns the sum of two parts, of which it may change the first; their order must not matter.
        """
        total: Part | None = self._run(function, shared, items, take, merge)
        return total

    @abstractmethod
    def _run(
        self,
        function: Callable[[Any, Any], Any],
        shared: Any,
        items: Sequence[Any],
        take: Callable[[Any], None],
        merge: Callable[[Any, Any], Any] | None,
    ) -> Any:
        """Run all calls. With `merge` they return pairs of a result and a part, and the total of the parts is returned."""


class ThreadExecutor(Executor):
    """Dask threads of this process."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or cpu_count()

    @property
    def workers(self) -> int:
        """Number of threads."""
        return self._workers

    def _run(
        self,
        function: Callable[[Any, Any], Any],
        shared: Any,
        items: Sequence[Any],
        take: Callable[[Any], None],
        merge: Callable[[Any, Any], Any] | None,
    ) -> Any:
        total: list[Any] = []

        def add(pair: tuple[Any, Any]) -> None:
            assert merge is not None
            total[:] = [merge(total[0], pair[1])] if total else [pair[1]]
            take(pair[0])

        run = _Run(function, shared, take if merge is None else add)
        # Dask starts with the last of these names; and neighbours share blocks of files, so they are best read together.
        try:
            for begin in range(0, len(items), TASKS_IN_FLIGHT):
                part = items[begin : begin + TASKS_IN_FLIGHT]
                names = (f"item-{number:09d}" for number in range(len(part), 0, -1))
                tasks = [delayed(run.one)(item, dask_key_name=name) for item, name in zip(part, names, strict=True)]
                dask.compute(*tasks, scheduler="threads", num_workers=self.workers, optimize_graph=False)
        except BaseException:
            run.over.set()  # interrupted: the other threads start nothing more
            raise
        if run.failure is not None:
            raise run.failure
        return total[0] if total else None


@dataclass
class _Run:
    """One call of `each` or `reduce` on threads. Dask would raise at once, while other threads are still writing."""

    function: Callable[[Any, Any], Any]
    shared: Any
    take: Callable[[Any], None]
    over: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, item: Any) -> None:
        if self.over.is_set():
            return
        try:
            result = self.function(self.shared, item)
            with self.lock:
                self.take(result)
        except Exception as error:
            with self.lock:
                self.failure = self.failure or error
            self.over.set()


class ClusterLostError(RuntimeError):
    """The scheduler or all workers of a cluster are gone."""


@dataclass
class MergeTree:
    """Merges parts that are held by a cluster, in groups, level by level, as they become ready.

    A tree, because a chain would carry the total from worker to worker for every part.
    """

    submit: Callable[[list[Any]], Any]  #: starts the merge of some parts, and returns a reference to the outcome
    levels: list[list[Any]] = field(default_factory=list)  #: references of parts that are not merged yet

    def add(self, part: Any, level: int = 0) -> None:
        """Add a reference to a part; a full group is merged to one part of the next level."""
        if level == len(self.levels):
            self.levels.append([])
        self.levels[level].append(part)
        if len(self.levels[level]) == MERGED_AT_ONCE:
            group, self.levels[level] = self.levels[level], []
            self.add(self.submit(group), level + 1)

    def total(self) -> Any:
        """A reference to the sum of all parts; None without parts."""
        rest = [part for level in self.levels for part in level]
        return self.submit(rest) if len(rest) > 1 else (rest[0] if rest else None)


class DistributedExecutor(Executor):
    """The workers of a dask.distributed cluster. They see the same files and have the same mibf installed."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @property
    def workers(self) -> int:
        """Threads of all its workers."""
        return sum(self.client.nthreads().values())

    def _run(
        self,
        function: Callable[[Any, Any], Any],
        shared: Any,
        items: Sequence[Any],
        take: Callable[[Any], None],
        merge: Callable[[Any, Any], Any] | None,
    ) -> Any:
        from distributed import as_completed, wait

        tree = MergeTree(lambda parts: self.client.submit(merge_parts, merge, parts, pure=False))
        with self.client.as_current():
            sent = self.client.scatter(shared, hash=False)
            waiting = iter(items)

            def submit(count: int) -> list[Any]:
                found = [
                    self.client.submit(run_remotely, function, sent, item, pure=False, retries=1)
                    for item in islice(waiting, count)
                ]
                if merge is None:
                    return found
                for pair in found:  # the parts stay where they are
                    tree.add(self.client.submit(_second, pair, pure=False))
                return [self.client.submit(_first, pair, pure=False) for pair in found]

            # A few items per thread at a time: results are taken as they complete, and a failure stops those not started.
            submitted = submit(4 * self.workers)
            completed = as_completed(submitted)
            try:
                for future in completed:
                    take(raise_refusal(self._result(future)))
                    submitted.remove(future)
                    for added in submit(1):
                        submitted.append(added)
                        completed.add(added)
            except ClusterLostError:
                raise
            except Exception:
                wait([future for future in submitted if not future.cancelled()])  # a few per thread, still writing
                raise
            except BaseException:
                self.client.cancel(submitted)
                raise
        total = tree.total()
        return None if total is None else self._result(total)

    def _result(self, future: Any) -> Any:
        """Wait for a result.

        Raises:
            ClusterLostError: the cluster or its workers are gone.
        """
        from distributed import CancelledError, KilledWorker
        from distributed.comm import CommClosedError

        try:
            return future.result()
        except (CancelledError, KilledWorker, CommClosedError) as error:
            raise ClusterLostError(f"the Dask cluster was lost ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class TaskRefusal:
    """A refused input in a form that can be sent: its cause, a GDAL error for example, may not be serializable."""

    message: str
    kind: type[InputError]


def run_remotely(function: Callable[[Any, Any], Any], shared: Any, item: Any) -> Any:
    """Run a call on another machine; a refused input is returned, as `TaskRefusal`, so that it is not retried."""
    try:
        return function(shared, item)
    except InputError as error:
        return TaskRefusal(str(error), type(error))


def raise_refusal(found: Any) -> Any:
    """Return what a call on another machine has returned.

    Raises:
        InputError: the call refused its input.
    """
    if isinstance(found, TaskRefusal):
        raise found.kind(found.message)
    return found


def merge_parts(merge: Callable[[Any, Any], Any], parts: Sequence[Any]) -> Any:
    """Merge parts on a worker; those of refused calls are None. The parts stay as they are: they may be needed again."""
    first, *others = [part for part in parts if part is not None] or [None]
    return functools.reduce(merge, others, copy.deepcopy(first))


def _first(pair: Any) -> Any:
    return pair if isinstance(pair, TaskRefusal) else pair[0]


def _second(pair: Any) -> Any:
    return None if isinstance(pair, TaskRefusal) else pair[1]


@contextmanager
def connect_dask(address: str) -> Iterator[Executor]:
    """Yield the cluster whose Dask scheduler is at an address such as tcp://10.0.0.1:8786.

    Raises:
        InputError: no scheduler responds there, or its workers are missing or have another version of mibf.
    """
    from distributed import Client

    try:
        client = Client(address, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"prepare.engine {address}: no Dask scheduler responds there ({error}); start one with `dask scheduler` "
            "and `dask worker`, fix the address, or set it to `threads` to use this machine's threads."
        ) from error
    with client:
        versions = client.run(_version)
        if not versions:
            raise InputError(
                f"prepare.engine {address}: the cluster has no workers; start some with `dask worker {address}`."
            )
        others = {f"{where} has {found}" for where, found in versions.items() if found != __version__}
        if others:
            raise InputError(
                f"prepare.engine {address}: this machine has mibf {__version__}, but {', '.join(sorted(others))}; "
                "install the same version on all."
            )
        yield DistributedExecutor(client)


def _version() -> str:
    return __version__
