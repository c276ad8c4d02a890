"""Connect to Ray: the cluster at RAY_ADDRESS, or a local instance started on this machine."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import psutil
import ray
import ray._private.worker
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.config.config import MOST_PER_GPU, ResourcesSection
from jobs.runtime import ray_start
from jobs.runtime.progress import info, pluralize, warn
from jobs.runtime.ray_start import await_gpus
from jobs.runtime.signals import kill_children
from jobs.runtime.version import library_versions, version_changes
from jobs.runtime.worker_resources import JOB, Node, WorkerResources, cpus_each
from mibf import __version__
from mibf.device import Precision, best_device, check_precision, missing_gpu
from mibf.errors import InputError
from pipeline.io import checksums, storage
from pipeline.parallel.cpu_count import cpu_count

#: Object store size of a local Ray instance. Only small rows pass through it, no tiles or samples.
OBJECT_STORE_BYTES = 128 << 20
#: Seconds in which a node must report its versions.
NODE_SECONDS = 60.0
#: Most files that nodes are asked for.
FILES_ASKED = 20
#: Seconds until an actor that holds a GPU has started.
HOLD_SECONDS = 60.0


def ensure(*, workers: int, object_store: int = OBJECT_STORE_BYTES) -> None:
    """Connect to Ray once per command; start it locally unless RAY_ADDRESS names a cluster.

    Args:
        workers: minimum number of CPUs.
        object_store: object store size in bytes, if Ray is started locally.

    Raises:
        InputError: the cluster at RAY_ADDRESS cannot be reached, a node of it has another version of mibf, or Ray cannot be
            started on this machine.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # relevant failures arrive as exceptions
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # worker failures are reported by mibf
    address = os.environ.get("RAY_ADDRESS", "local")
    if address != "local":
        try:
            ray_start.check_address(address)
            _init(logging_level=logging.WARNING)
        except _START_ERRORS as error:
            raise InputError(
                f"RAY_ADDRESS={address}: no Ray cluster can be reached there ({error}). Start one, correct the address, "
                "set RAY_AUTH_MODE=token and its token if required, or unset RAY_ADDRESS to start Ray locally."
            ) from error
        _check_nodes()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # each epoch's report waits for the next health check
    ray_start.check_machine()
    try:
        _init(
            address="local",  # otherwise Ray would connect to any instance already running on this machine
            num_cpus=max(workers, cpu_count()),
            include_dashboard=False,
            object_store_memory=max(object_store, OBJECT_STORE_BYTES),
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises Exception itself if one of its processes does not start
        raise InputError(
            f"Ray cannot be started on this machine ({error}). Free memory and space for its temporary files, or run "
            "without Ray (`train.workers: 0`, `map.workers: 0`)."
        ) from error


#: What a call on a node that has ended raises.
_NODE_LOST = (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError)


def _ask_nodes(function: Callable[..., Any], *arguments: Any) -> tuple[dict[str, Any], list[str]]:
    """Call a function on every node that may get workers; return the answers by address, and the addresses without one.

    Raises:
        InputError: mibf cannot be used on a node.
    """
    ask = ray.remote(num_cpus=0, max_retries=0)(function)
    pending = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(*arguments): node
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    }
    answered, waiting = ray.wait(list(pending), num_returns=len(pending), timeout=NODE_SECONDS) if pending else ([], [])
    found, silent = {}, [pending[each]["NodeManagerAddress"] for each in waiting]
    for each in answered:
        address = pending[each]["NodeManagerAddress"]
        try:
            found[address] = ray.get(each)
        except _NODE_LOST:  # Ray lists a node for some seconds after its end
            silent.append(address)
        except ray.exceptions.RayError as error:
            raise InputError(
                f"Ray node {address}: mibf cannot be used there ({str(error).strip().splitlines()[-1]}); install mibf "
                f"{__version__} on it."
            ) from error
    return found, silent


def check_shared(urls: Collection[str]) -> None:
    """Check that every node of a cluster finds the same files as this process; of many, a few are checked.

    Raises:
        InputError: a node does not find one of them, or finds another file there.
    """
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        return  # the only node is this machine
    asked = sorted(urls)[:: max(1, len(urls) // FILES_ASKED)][:FILES_ASKED]
    here = {}
    for url in asked:
        with suppress(InputError):  # its reader reports it
            here[url] = checksums.input_fingerprint(url)
    found, _ = _ask_nodes(_unlike, here)
    for address, problem in found.items():
        if problem is not None:
            raise InputError(
                f"Ray node {address}: {problem}. Put inputs and workspace where all nodes find them at the same address, "
                "in an object store or on a shared disk, and give the nodes the credentials."
            )


def _unlike(files: Mapping[str, str]) -> str | None:
    """What is wrong with the first of some files on this node, given their fingerprints; None if nothing is."""
    for url, expected in files.items():
        try:
            if checksums.fingerprint(url) != expected:
                return f"{storage.redact_url(url)} is another file there"
        except Exception as error:  # each file system raises its own types
            return f"{storage.redact_url(url)} cannot be read there ({type(error).__name__})"
    return None


def _check_nodes() -> None:
    """Ask every node that may get workers for its versions; say once which nodes compute with other libraries.

    Raises:
        InputError: a node has another version of mibf, or none.
    """
    here = library_versions()
    found, silent = _ask_nodes(library_versions)
    others = [f"{address} did not answer within {NODE_SECONDS:g} s" for address in silent]
    for address, versions in found.items():
        if versions["mibf"] != here["mibf"]:
            raise InputError(
                f"Ray node {address} has mibf {versions['mibf']}, and this process has {here['mibf']}; install the same "
                "version on all nodes."
            )
        if changed := version_changes(here, versions):
            others.append(f"{address} does not have this machine's {changed.replace('(now', '(but')}")
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        warn(f"Ray nodes may compute slightly different values: {'; '.join(others[:3])}{more}")


#: What `ray.init` raises where no cluster can be reached.
_START_ERRORS = (OSError, RuntimeError, ValueError, ray.exceptions.RayError, ray_start.StartTimeoutError)


def _init(**options: Any) -> None:
    """Call `ray.init`; if it fails or is interrupted, kill the processes that it has started."""
    earlier = psutil.Process().children(recursive=True)
    try:
        # Ray prints lost nodes to standard output, which belongs to the summary; what follows from them, mibf reports.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        with _suppressed_stderr() as report, ray_start.watched(report, limit=ray_start.LIMIT_SECONDS):
            ray.init(job_config=ray_start.JobConfig(), log_to_driver=False, **options)
    except BaseException:
        kill_children(spared=earlier)
        raise


@contextmanager
def _suppressed_stderr() -> Iterator[Callable[[str], None]]:
    """Suppress what Ray's libraries write to standard error during startup; failures arrive as exceptions.

    Yield a function that prints a line there nevertheless.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as buffer:

        def report(line: str) -> None:
            os.dup2(saved, 2)
            info(line)
            os.dup2(buffer.fileno(), 2)

        os.dup2(buffer.fileno(), 2)
        try:
            yield report
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def close(*, interrupted: bool = False) -> None:
    """Disconnect from Ray; a local instance is shut down. After an interruption, within seconds or by force."""
    if ray.is_initialized():
        with ray_start.ending_within(ray_start.DISCONNECT_SECONDS) if interrupted else nullcontext():
            ray.shutdown()


class AssignedDevice(NamedTuple):
    """The device that Ray assigned to this worker."""

    node: str  #: id of the Ray node
    name: str  #: for people; unique on the node
    device: torch.device


def assigned_device() -> AssignedDevice:
    """Return the device of this worker: the GPU that Ray assigned to it, or the CPU, even if it can see GPUs."""
    context = ray.get_runtime_context()
    node, gpus = context.get_node_id(), context.get_accelerator_ids().get("GPU", [])
    host = socket.gethostname()
    if not gpus:
        return AssignedDevice(node, f"{host}, worker {(context.get_actor_id() or '')[:8]}", torch.device("cpu"))
    name = f"{host}, GPU {gpus[0]}"
    if best_device().type == "cpu":
        return AssignedDevice(node, name, torch.device("cpu"))
    # Ray shows a worker its own GPUs alone, unless the environment says otherwise.
    seen = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    position = seen.index(str(gpus[0])) if str(gpus[0]) in seen else 0 if seen else int(gpus[0])
    return AssignedDevice(node, name, torch.device("cuda", position))


def check_gpu(precision: Precision, share: WorkerResources, *, key: str) -> None:
    """Check on the first free GPU, or part of one, that it supports the precision of a key of the configuration.

    If torch does not find the GPU that Ray counts, say that workers there compute on CPUs.

    Raises:
        InputError: the device does not support it.
    """
    ask = ray.remote(num_cpus=0, num_gpus=share.gpu_share)(_gpu_problems)
    refused, warned = ray.get(ask.remote(precision, key))
    if refused:
        raise InputError(refused)
    if warned:
        warn(warned)


def _gpu_problems(precision: Precision, key: str) -> tuple[str, str]:
    """Return why the device of this node cannot be used with a precision, and what to warn of; empty if nothing."""
    device, warned = best_device(), ""
    if device.type == "cpu":
        warned = (
            f"Ray node {socket.gethostname()} counts a GPU, but {missing_gpu()}, so workers there compute on CPUs; install "
            "a build of torch for its driver, or set resources.gpus to false"
        )
    try:
        check_precision(device, precision, key=key)
    except InputError as error:
        return str(error), warned
    return "", warned


class _Holder:
    """Actor that does nothing but hold the GPU that Ray assigned to it."""

    def name(self) -> str:
        return assigned_device().name


def hold_gpu(node: str, name: str, held: ExitStack) -> None:
    """Keep a GPU, by the name that `assigned_device` gives it, from other workers until `held` ends.

    Actors are started on its node until one is assigned that GPU. If none is within `HOLD_SECONDS` each, it stays free.
    """
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    gpus = sum(int(each["Resources"].get("GPU", 0)) for each in ray.nodes() if each["NodeID"] == node)
    with ExitStack() as others:
        for _ in range(gpus):
            holder = ray.remote(num_cpus=0, num_gpus=1)(_Holder).options(scheduling_strategy=where).remote()
            try:
                found = ray.get(holder.name.remote(), timeout=HOLD_SECONDS)
            except ray.exceptions.RayError:  # all GPUs of the node are taken, or the node is gone
                ray.kill(holder)
                return
            (held if found == name else others).callback(ray.kill, holder)
            if found == name:
                return


def share_cluster(
    wanted: ResourcesSection, workers: int, *, fewest: int | None = None, reserved_cpus: int = 0
) -> WorkerResources:
    """Divide the cluster's current resources among workers. GPUs are used only if there is one per required worker.

    Where their number is elastic, there are then as many workers as GPUs, and each has one; or several share one, where
    `workers_per_gpu` says so.

    Args:
        wanted: whether GPUs are waited for, or not used.
        workers: number of workers, at most.
        fewest: the workers required to start, if their number is elastic.
        reserved_cpus: CPUs reserved for other processes.

    Raises:
        InputError, GpusUnavailableError: as for `await_gpus`; or a node that has joined has another version of mibf.
    """
    required, per_gpu = workers if fewest is None else fewest, wanted.workers_per_gpu
    if wanted.gpus is True:
        await_gpus(required, per_gpu=per_gpu, minutes=wanted.gpu_wait_minutes)
        if os.environ.get("RAY_ADDRESS", "local") != "local":
            _check_nodes()  # some may have joined since `ensure`
    nodes, places = _nodes()
    own_gpus = _driver_gpus()
    cpus, gpus = sum(node.cpus for node in nodes) - bool(places), sum(node.gpus for node in nodes) - own_gpus
    on_gpus = wanted.gpus is not False and gpus * per_gpu >= required
    if on_gpus:
        workers = min(workers, gpus * per_gpu)
    elif gpus > 0 and wanted.gpus is not False:
        info(f"warning: {_too_few_gpus(gpus, required, per_gpu)}")
    if cpus < required + reserved_cpus:
        others = f" plus {reserved_cpus} reserved CPU" if reserved_cpus else ""
        info(f"warning: the cluster has {cpus} CPU for {required} workers{others}; waiting for more")
    each = cpus_each(
        nodes,
        workers,
        driver=places,
        driver_gpus=own_gpus,
        reserved_cpus=reserved_cpus,
        on_gpus=on_gpus,
        per_gpu=per_gpu,
    )
    return WorkerResources(workers, each, int(on_gpus), per_gpu if on_gpus else 1)


def _too_few_gpus(gpus: int, workers: int, per_gpu: int) -> str:
    """Say that there are more workers than the GPUs have room for, and what would fit."""
    shared = f" with room for {per_gpu} workers each (resources.workers_per_gpu)" if per_gpu > 1 else ""
    needed = -(-workers // gpus)
    others = f", or resources.workers_per_gpu to {needed}," if needed <= MOST_PER_GPU else ""
    return (
        f"the cluster has {pluralize(gpus, 'GPUs')}{shared}, too few for {pluralize(workers, 'workers')}, so all compute on "
        f"CPUs; set workers to {gpus * per_gpu}{others} to use GPUs"
    )


def driver_takes_cpu() -> bool:
    """Whether this process is the driver of a submitted job and holds a CPU of the cluster."""
    return bool(_nodes()[1])


def _driver_gpus() -> int:
    """Number of GPUs that Ray has assigned to this process, if it is the driver of a submitted job."""
    if JOB not in os.environ:
        return 0
    visible = len([each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each])
    in_use = ray.cluster_resources().get("GPU", 0) - ray.available_resources().get("GPU", 0)
    return min(visible, int(in_use))  # a node may set the variable, too


def _no_cpu_in_use() -> bool:
    """Whether all CPUs of the cluster are free: then this job's driver takes none, as with `--entrypoint-num-cpus 0`."""
    return bool(ray.available_resources().get("CPU", 0) >= ray.cluster_resources().get("CPU", 0))


def _nodes() -> tuple[list[Node], list[int]]:
    """Return the live nodes, and the indices of those on one of which this process, if a job's driver, takes a CPU."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [Node(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in alive]
    if JOB not in os.environ or _no_cpu_in_use():
        return nodes, []
    own_node = ray.get_runtime_context().get_node_id()
    able = [position for position, node in enumerate(nodes) if node.cpus]
    # With several Ray nodes on one machine a driver reports the head node, wherever its CPU was taken.
    return nodes, [position for position in able if alive[position]["NodeID"] == own_node] or able
