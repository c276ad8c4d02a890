"""Carries out a function for many windows: on Dask's threads here, or on the machines of a dask.distributed cluster.

Which one is all the same to what is made: a task depends on its window alone, and writes whole shards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import dask
from dask.delayed import delayed
from dask.system import CPU_COUNT

from mibf import __version__
from mibf.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")
#: Seconds to wait for a scheduler.
TIMEOUT = 10
#: Items in one graph of Dask's, whose size costs time and memory.
AT_ONCE = 1000


class Engine(Protocol):
    """Something that carries out a function for many items."""

    @property
    def workers(self) -> int:
        """How many items are in work at once."""

    def each(
        self,
        function: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Sequence[Item],
        take: Callable[[Result], None],
    ) -> None:
        """Call `function(shared, item)` for every item, and `take` with each result, one at a time, as they come.

        When a call fails none is begun any more, and its exception is raised once those in work are over.
        """


@dataclass
class Threads:
    """Dask's threads of this process."""

    workers: int = CPU_COUNT

    def each(
        self,
        function: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Sequence[Item],
        take: Callable[[Result], None],
    ) -> None:
        """As `Engine.each`."""
        run = _Run(function, shared, take)
        # Dask begins the last of such names first; and neighbours, which share blocks of files, are best read together.
        try:
            for begin in range(0, len(items), AT_ONCE):
                part = items[begin : begin + AT_ONCE]
                names = (f"item-{number:09d}" for number in range(len(part), 0, -1))
                tasks = [delayed(run.one)(item, dask_key_name=name) for item, name in zip(part, names, strict=True)]
                dask.compute(*tasks, scheduler="threads", num_workers=self.workers, optimize_graph=False)
        except BaseException:
            run.over.set()  # interrupted: the other threads begin nothing more
            raise
        if run.failure is not None:
            raise run.failure


@dataclass
class _Run:
    """One use of the threads. Dask would raise at once, while other threads still write."""

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
class Cluster:
    """The workers of a dask.distributed cluster. They see the same files and have the same mibf installed."""

    client: Client

    @property
    def workers(self) -> int:
        """Threads of all its workers."""
        return sum(self.client.nthreads().values())

    def each(
        self,
        function: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Sequence[Item],
        take: Callable[[Result], None],
    ) -> None:
        """As `Engine.each`."""
        from distributed import CancelledError, KilledWorker, as_completed, wait
        from distributed.comm import CommClosedError

        with self.client.as_current():
            sent = self.client.scatter(shared, hash=False)
            waiting = iter(items)
            # A few items a thread at a time: results are taken as they come, and a failure stops what has not begun.
            at_work = [self._submit(function, sent, item) for item in islice(waiting, 4 * self.workers)]
            begun = as_completed(at_work)
            try:
                for future in begun:
                    try:
                        result = future.result()
                    except (CancelledError, KilledWorker, CommClosedError) as error:
                        raise ClusterLostError(f"the Dask cluster was lost ({type(error).__name__}: {error})") from error
                    if isinstance(result, _Refusal):
                        raise result.kind(result.message)
                    take(result)
                    at_work.remove(future)
                    for item in islice(waiting, 1):
                        at_work.append(self._submit(function, sent, item))
                        begun.add(at_work[-1])
            except ClusterLostError:
                raise
            except Exception:
                wait([future for future in at_work if not future.cancelled()])  # a few a thread, which write still
                raise
            except BaseException:
                self.client.cancel(at_work)
                raise

    def _submit(self, function: Callable[..., Any], shared: Any, item: Any) -> Any:
        return self.client.submit(_carried, function, shared, item, pure=False, retries=1)


@dataclass(frozen=True)
class _Refusal:
    """A refused input as it travels: what caused it, an error of GDAL's for one, may not be sent."""

    message: str
    kind: type[InputError]


def _carried(function: Callable[[Any, Any], Any], shared: Any, item: Any) -> Any:
    """A call on another machine; what is refused there is not tried again."""
    try:
        return function(shared, item)
    except InputError as error:
        return _Refusal(str(error), type(error))


@contextmanager
def engine(scheduler: str | None) -> Iterator[Engine]:
    """The threads of this process, or the cluster whose scheduler is at an address such as tcp://10.0.0.1:8786.

    Raises:
        InputError: no scheduler answers there, or its workers have another version of mibf.
    """
    if scheduler is None:
        yield Threads()
        return
    from distributed import Client

    try:
        client = Client(scheduler, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"prepare.scheduler {scheduler}: no Dask scheduler answers there ({error}); start one with `dask scheduler` and "
            "`dask worker`, mend the address, or leave it out to use this machine's threads."
        ) from error
    with client:
        versions = client.run(_version)
        if not versions:
            raise InputError(
                f"prepare.scheduler {scheduler}: the cluster has no workers; start some with `dask worker {scheduler}`."
            )
        others = {f"{where} has {found}" for where, found in versions.items() if found != __version__}
        if others:
            raise InputError(f"prepare.scheduler {scheduler}: here is mibf {__version__}, but {', '.join(sorted(others))}.")
        yield Cluster(client)


def _version() -> str:
    return __version__
