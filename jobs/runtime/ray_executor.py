"""Run a function over many windows as Ray tasks: the executor of `pipeline.parallel.executor` on a Ray cluster.

Each call is a task of its own, so Ray repeats those of a node that is lost, and autoscaling sees how many wait. Parts of a
large total stay in the nodes' object stores, and are merged there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.runtime import ray_cluster
from mibf import __version__
from mibf.errors import InputError
from pipeline.parallel.executor import (
    ClusterLostError,
    Executor,
    MergeTree,
    TaskRefusal,
    merge_parts,
    raise_refusal,
    run_remotely,
)

#: Calls that wait or run at once: enough for autoscaling to see what the work needs.
IN_FLIGHT = 256
#: Times that a call whose process or node was lost is repeated.
RETRIES = 3
#: Seconds between looks at signals while calls run.
SIGNAL_SECONDS = 1.0


class RayExecutor(Executor):
    """The CPUs of a Ray cluster, one call on each, and those that a submitted job's driver holds.

    With `beside_others` calls do not wait for CPUs that others hold, such as the workers of a map: at most one call a CPU
    runs at a time, spread over the nodes.
    """

    def __init__(self, *, beside_others: bool = False) -> None:
        self.beside_others = beside_others

    @property
    def workers(self) -> int:
        """Number of CPUs of the cluster's live nodes."""
        return max(1, int(ray.cluster_resources().get("CPU", 0)))

    def _run(
        self,
        function: Callable[[Any, Any], Any],
        shared: Any,
        items: Sequence[Any],
        take: Callable[[Any], None],
        merge: Callable[[Any, Any], Any] | None,
    ) -> Any:
        most = self.workers if self.beside_others else None
        if merge is None:
            _Run(function, shared, items, take, most=most).finish()
            return None
        sum_up = ray.remote(num_cpus=0, max_retries=RETRIES)(_merge)
        tree = MergeTree(lambda parts: sum_up.remote(merge, *parts))
        _Run(function, shared, items, take, tree, most=most).finish()
        total = tree.total()
        return None if total is None else _result(total)


class _Run:
    """One call of `RayExecutor.each` or `reduce`: the tasks in flight."""

    def __init__(
        self,
        function: Callable[..., Any],
        shared: Any,
        items: Sequence[Any],
        take: Callable[[Any], None],
        tree: MergeTree | None = None,
        *,
        most: int | None = None,
    ) -> None:
        self.sent = ray.put((function, shared, __version__))
        self.waiting = iter(items)
        self.take, self.tree = take, tree
        call, returned = (_call, 1) if tree is None else (_call_pair, 2)
        self.task = ray.remote(max_retries=RETRIES, num_returns=returned)(call)
        self.most = most or IN_FLIGHT
        if most is not None:
            self.task = self.task.options(num_cpus=0, scheduling_strategy="SPREAD")
        self.running: dict[Any, Any] = {}  #: the reference of each result, with that of its part
        # The CPU of a submitted job's driver would otherwise be idle: one call at a time runs beside the driver.
        self.beside = _beside_driver() if most is None else None
        self.own: Any = None  #: the reference of the call that does

    def finish(self) -> None:
        """Run all calls.

        Raises:
            ClusterLostError: a call's processes or nodes were lost, several times.
            Exception: what a call or `take` has raised.
        """
        try:
            self._submit()
            while self.running:
                done, _ = ray.wait(list(self.running), num_returns=1, timeout=SIGNAL_SECONDS)
                for reference in done:
                    part = self.running.pop(reference)
                    self.own = None if reference == self.own else self.own
                    self.take(raise_refusal(_result(reference)))
                    if self.tree is not None:
                        self.tree.add(part)
                    self._submit()
        except BaseException as error:
            for reference in self.running:
                ray.cancel(reference)
            if isinstance(error, Exception):  # the caller may remove what they write
                _wait(self.running)
            raise

    def _submit(self) -> None:
        """Start calls until as many as may be in flight are."""
        if self.beside is not None and self.own is None:
            for item in islice(self.waiting, 1):
                self.own = self._start(self.task.options(num_cpus=0, scheduling_strategy=self.beside), item)
        for item in islice(self.waiting, self.most - len(self.running)):
            self._start(self.task, item)

    def _start(self, task: Any, item: Any) -> Any:
        found = task.remote(self.sent, item)
        reference, part = (found, None) if self.tree is None else found
        self.running[reference] = part
        return reference


def _wait(references: Collection[Any]) -> None:
    if references:
        ray.wait(list(references), num_returns=len(references))


def _beside_driver() -> NodeAffinitySchedulingStrategy | None:
    """The node of this process if it is the driver of a submitted job, and holds a CPU of the cluster."""
    if not ray_cluster.driver_takes_cpu():
        return None
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def _result(reference: Any) -> Any:
    """Wait for a result.

    Raises:
        ClusterLostError: its processes or nodes were lost, several times.
        Exception: what the call has raised.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        line = str(error).strip().splitlines()[0]
        raise ClusterLostError(f"Ray lost the process of a task {RETRIES + 1} times ({line})") from error


def _call(sent: tuple[Callable[..., Any], Any, str], item: Any) -> Any:
    """Run one call in a worker."""
    function, shared, version = sent
    if version != __version__:  # of a node that has joined since the start
        return TaskRefusal(f"Ray node {ray.util.get_node_ip_address()} has mibf {__version__}, not {version}", InputError)
    return run_remotely(function, shared, item)


def _call_pair(sent: tuple[Callable[..., Any], Any, str], item: Any) -> Any:
    """Run one call that returns a result and a part."""
    found = _call(sent, item)
    return (found, None) if isinstance(found, TaskRefusal) else found


def _merge(merge: Callable[[Any, Any], Any], *parts: Any) -> Any:
    """Merge parts in a worker."""
    return merge_parts(merge, parts)
