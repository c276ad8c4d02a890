"""Ray, as it is found: the cluster that RAY_ADDRESS names, or one that starts by itself on this machine."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ray
from dask.system import CPU_COUNT

from jobs.progress import say
from mibf.errors import InputError

#: A variable of the environment that drivers of submitted jobs have.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Object store of a Ray that we start: tiles and samples do not pass through it, only small rows do.
OBJECT_STORE_BYTES = 128 << 20


def ensure(*, workers: int, object_store: int = OBJECT_STORE_BYTES) -> None:
    """Connect to Ray, starting it here unless RAY_ADDRESS names a cluster; once for all stages of a command.

    Args:
        workers: processors that are wanted at the least.
        object_store: bytes for what passes through Ray, of one that is started here.

    Raises:
        InputError: the cluster that RAY_ADDRESS names cannot be reached.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters reaches us as an exception
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what a worker dies of we tell ourselves
    address = os.environ.get("RAY_ADDRESS", "local")
    if address != "local":
        try:
            _check_listening(address)
            with _held_back_stderr():
                ray.init(logging_level=logging.WARNING, log_to_driver=False)
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            raise InputError(
                f"RAY_ADDRESS={address}: no Ray cluster can be reached there ({error}). Start one, mend the address, set "
                "RAY_AUTH_MODE=token with its token if it asks for one, or unset RAY_ADDRESS to start Ray here."
            ) from error
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # an epoch's report waits for the next check
    with _held_back_stderr():
        ray.init(
            address="local",  # otherwise Ray looks for one that somebody started on this machine
            num_cpus=max(workers, CPU_COUNT),  # Dask counts what a container or an affinity mask leaves us
            include_dashboard=False,
            object_store_memory=max(object_store, OBJECT_STORE_BYTES),
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


def _check_listening(address: str) -> None:
    """See within seconds that something listens at HOST:PORT; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Hold back what Ray's libraries write to standard error while they start: a failure comes as an exception."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def close() -> None:
    """Leave Ray; one that was started here ends with it."""
    if ray.is_initialized():
        ray.shutdown()


@dataclass(frozen=True)
class Share:
    """What each of some workers may take of the cluster: whole CPUs, and a GPU where there are any.

    Without workers it is what the command's own process takes.
    """

    workers: int
    cpus: int
    gpus: int

    @property
    def resources(self) -> dict[str, int]:
        """The share as Ray asks for it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def __str__(self) -> str:
        device = "a GPU" if self.gpus else f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        if self.workers == 0:
            return f"{device} in this process"
        return f"{'1 worker' if self.workers == 1 else f'{self.workers} workers'} with {device} each"


def share(workers: int, *, fewest: int | None = None, beside: int = 0) -> Share:
    """Share the cluster, as it is now, among workers; GPUs are used where there is one for each.

    `fewest` are enough to begin with, where their number is elastic. `beside` CPUs are left to others.
    """
    nodes, places = _nodes()
    cpus, gpus = sum(node.cpus for node in nodes) - bool(places), sum(node.gpus for node in nodes)
    if 0 < gpus < workers:
        say(f"warning: {gpus} GPU for {workers} workers, so that none is used; set workers to {gpus} to use it")
    if cpus < (fewest or workers) + beside:
        others = f" and {beside} CPU beside them" if beside else ""
        say(f"warning: the cluster has {cpus} CPU for {workers} workers{others}; waiting for it to grow")
    each = cpus_each(nodes, workers, driver=places, beside=beside, on_gpus=gpus >= workers)
    return Share(workers, each, int(gpus >= workers))


@dataclass(frozen=True)
class Node:
    """What a node of the cluster has for workers."""

    cpus: int
    gpus: int = 0


def cpus_each(
    nodes: Sequence[Node], workers: int, *, driver: Sequence[int] = (), beside: int = 0, on_gpus: bool = False
) -> int:
    """The most whole CPUs that each of some workers may take, each of them being on one node; 1 where there is no room.

    Args:
        nodes: of the cluster.
        workers: their number.
        driver: positions of the nodes on one of which the driver takes a CPU; none where it takes none.
        beside: CPUs that are left to others.
        on_gpus: whether each worker takes a GPU, too.
    """
    if driver:
        left = [[replace(node, cpus=node.cpus - (p == taken)) for p, node in enumerate(nodes)] for taken in driver]
        return min(cpus_each(rest, workers, beside=beside, on_gpus=on_gpus) for rest in left)
    for each in range(max((node.cpus for node in nodes), default=1), 1, -1):
        room = sum(min(node.cpus // each, node.gpus) if on_gpus else node.cpus // each for node in nodes)
        if room >= workers and sum(node.cpus for node in nodes) - each * workers >= beside:
            return each
    return 1


def _nodes() -> tuple[list[Node], list[int]]:
    """The nodes that are there, and the positions of those on one of which this process takes a CPU as a job's driver."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [Node(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in alive]
    if _JOB not in os.environ:
        return nodes, []
    here = ray.get_runtime_context().get_node_id()
    able = [position for position, node in enumerate(nodes) if node.cpus]
    # On a machine with several nodes a driver belongs to the head's, wherever its CPU is.
    return nodes, [position for position in able if alive[position]["NodeID"] == here] or able
