"""Run a function over many windows: on Dask threads of this process, or on the machines of a dask.distributed cluster.

The choice does not affect the results: a task depends on its window alone, and writes whole shards.
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
#: Items in one Dask graph: larger graphs cost time and memory.
TASKS_IN_FLIGHT = 1000


class Executor(Protocol):
    """Runs a function over many items."""

    @property
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


@dataclass
class ThreadExecutor:
    """Dask threads of this process."""

    workers: int = CPU_COUNT

    def each(
        self,
        function: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Sequence[Item],
        take: Callable[[Result], None],
    ) -> None:
        """See `Executor.each`."""
        run = _Run(function, shared, take)
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


@dataclass
class _Run:
    """One call of `ThreadExecutor.each`. Dask would raise at once, while other threads are still writing."""

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
class DistributedExecutor:
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
        """See `Executor.each`."""
        from distributed import CancelledError, KilledWorker, as_completed, wait
        from distributed.comm import CommClosedError

        with self.client.as_current():
            sent = self.client.scatter(shared, hash=False)
            waiting = iter(items)
            # A few items per thread at a time: results are taken as they complete, and a failure stops those not started.
            submitted = [self._submit(function, sent, item) for item in islice(waiting, 4 * self.workers)]
            completed = as_completed(submitted)
            try:
                for future in completed:
                    try:
                        result = future.result()
                    except (CancelledError, KilledWorker, CommClosedError) as error:
                        raise ClusterLostError(f"the Dask cluster was lost ({type(error).__name__}: {error})") from error
                    if isinstance(result, _TaskRefusal):
                        raise result.kind(result.message)
                    take(result)
                    submitted.remove(future)
                    for item in islice(waiting, 1):
                        submitted.append(self._submit(function, sent, item))
                        completed.add(submitted[-1])
            except ClusterLostError:
                raise
            except Exception:
                wait([future for future in submitted if not future.cancelled()])  # a few per thread, still writing
                raise
            except BaseException:
                self.client.cancel(submitted)
                raise

    def _submit(self, function: Callable[..., Any], shared: Any, item: Any) -> Any:
        return self.client.submit(_run_remotely, function, shared, item, pure=False, retries=1)


@dataclass(frozen=True)
class _TaskRefusal:
    """A refused input in a form that can be sent: its cause, a GDAL error for example, may not be serializable."""

    message: str
    kind: type[InputError]


def _run_remotely(function: Callable[[Any, Any], Any], shared: Any, item: Any) -> Any:
    """Run a call on another machine; a refused input is returned, so that it is not retried."""
    try:
        return function(shared, item)
    except InputError as error:
        return _TaskRefusal(str(error), type(error))


@contextmanager
def make_executor(scheduler: str | None) -> Iterator[Executor]:
    """Yield the threads of this process, or the cluster whose scheduler is at an address such as tcp://10.0.0.1:8786.

    Raises:
        InputError: no scheduler responds there, or its workers are missing or have another version of mibf.
    """
    if scheduler is None:
        yield ThreadExecutor()
        return
    from distributed import Client

    try:
        client = Client(scheduler, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"prepare.scheduler {scheduler}: no Dask scheduler responds there ({error}); start one with `dask scheduler` "
            "and `dask worker`, fix the address, or remove the key to use this machine's threads."
        ) from error
    with client:
        versions = client.run(_version)
        if not versions:
            raise InputError(
                f"prepare.scheduler {scheduler}: the cluster has no workers; start some with `dask worker {scheduler}`."
            )
        others = {f"{where} has {found}" for where, found in versions.items() if found != __version__}
        if others:
            raise InputError(
                f"prepare.scheduler {scheduler}: this machine has mibf {__version__}, but {', '.join(sorted(others))}; "
                "install the same version on all."
            )
        yield DistributedExecutor(client)


def _version() -> str:
    return __version__
