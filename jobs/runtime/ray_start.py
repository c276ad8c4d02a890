"""Start Ray or connect to a cluster: check first what Ray needs, limit the wait, and let Ctrl-C end it.

Also wait for the GPUs of a cluster, which autoscaling may have to start.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import ray._private.state
import ray.job_config
from ray.util.placement_group import placement_group, remove_placement_group

from jobs.runtime.import_path import worker_path
from jobs.runtime.progress import info, pluralize
from jobs.runtime.signals import INTERRUPTED, kill_children
from jobs.runtime.worker_resources import GpusUnavailableError, WorkerResources
from mibf.errors import InputError

#: Seconds after which starting or connecting is reported as slow, and after which it is given up.
SLOW_SECONDS, LIMIT_SECONDS = 30.0, 180.0
#: Seconds that an interrupted call may take to end by itself before its processes are killed; then those to disconnect.
GRACE_SECONDS, DISCONNECT_SECONDS = 6.0, 3.0
#: Seconds after which waiting for GPUs is reported, and between two reports.
GPU_SECONDS, GPU_REPORT_SECONDS = 2.0, 60.0
#: Longest path of a Unix socket in bytes; the longest that Ray has below its temporary folder, before the process id.
SOCKET_PATH = 103 if sys.platform == "darwin" else 107
RAY_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_/sockets/plasma_store"
#: Most digits of a process id.
PID_DIGITS = 7


class StartTimeoutError(Exception):
    """Starting or connecting took longer than `LIMIT_SECONDS`."""


class JobConfig(ray.job_config.JobConfig):  # type: ignore[misc]  # Ray has no types for it
    """Ray's job configuration, with mibf's packages instead of the driver's current folder on the workers' import path."""

    def _get_proto_job_config(self) -> Any:
        # `ray.init` has added the folders of the script and the current one, which workers would search first.
        self._py_driver_sys_path = worker_path()
        return super()._get_proto_job_config()


def check_address(address: str) -> None:
    """Check the form of a cluster's address, and within seconds that something listens there.

    Ray itself would retry for many minutes.

    Raises:
        InputError: it is the address of a job server.
        OSError: nothing listens there.
    """
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS={address}: is the address of a job server. Set RAY_ADDRESS to the head node's HOST:6379, or unset "
            "it and use `mibf submit` with --address or RAY_API_SERVER_ADDRESS."
        )
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def check_machine() -> None:
    """Check what Ray needs to start on this machine; without a writable home folder, give it a token for this process.

    Raises:
        InputError: the temporary folder is not writable or its path is too long, or the loopback interface is down.
    """
    _check_temporary_folder()
    _check_loopback()
    _ensure_token()


def _check_temporary_folder() -> None:
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if variable == "TMPDIR" and sys.platform == "darwin":
        variable = None  # Ray uses /tmp there
    folder = "/tmp" if variable is None else os.environ[variable]  # Ray's default
    longest = SOCKET_PATH - len(RAY_SOCKET)
    if len(os.fsencode(folder)) > longest - len(str(os.getpid())):
        raise InputError(
            f"{variable}={folder}: its path has {len(os.fsencode(folder))} characters, too many for Ray's sockets below it. "
            f"Set RAY_TMPDIR, which only Ray uses, to a folder whose path has at most {longest - PID_DIGITS}."
        )
    try:
        Path(folder, "ray").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=Path(folder, "ray")):
            pass
    except OSError as error:
        raise InputError(
            f"{Path(folder, 'ray')}: Ray cannot write its temporary files there ({error.strerror}). Set RAY_TMPDIR to a "
            "writable folder with a short path."
        ) from error


def _check_loopback() -> None:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise InputError(
            f"127.0.0.1: this machine cannot connect to itself ({error.strerror or error}), but Ray's processes must. "
            "Bring the loopback interface up (`ip link set lo up`) and allow connections on it, or run without Ray "
            "(`train.workers: 0`, `map.workers: 0`)."
        ) from error


def _ensure_token() -> None:
    """Set a token for this process's own Ray instance where Ray could not save one: in a home that is not writable."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    home = Path.home()
    if not (home / ".ray" / "auth_token").exists():
        try:
            (home / ".ray").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=home / ".ray"):
                pass
        except OSError:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def watched(report: Callable[[str], None], *, limit: float | None = None) -> Iterator[None]:
    """Make Ctrl-C and SIGTERM end a call of Ray in the block, report a slow one, and end it after `limit` seconds.

    Ray waits in C++, where Python's signal handlers may never run. If the block does not end within `GRACE_SECONDS` of a
    signal, the processes that it started are killed and this process exits. The handlers of both signals, which Ray
    replaces, are restored at the end. Does nothing outside the main thread.

    Raises:
        KeyboardInterrupt: a signal ended the block.
        StartTimeoutError: the limit was reached.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup, written = socket.socketpair()
    written.setblocking(False)
    before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    watch = _Watch(wakeup, report, limit)
    watch.start()
    try:
        yield
        if watch.interrupted:
            raise KeyboardInterrupt
    except BaseException as error:  # Ray's own handlers exit, and calls fail once its processes got the signal too
        if watch.expired:
            raise StartTimeoutError(f"no success within {limit:g} s") from None
        if watch.interrupted or isinstance(error, KeyboardInterrupt | SystemExit):
            raise KeyboardInterrupt from None
        raise
    finally:
        watch.ended.set()
        signal.set_wakeup_fd(before)
        written.close()  # ends the watch
        watch.join()
        wakeup.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Watch(threading.Thread):
    """Waits for a signal, the time limit or the end of a call; see `watched`."""

    def __init__(self, wakeup: socket.socket, report: Callable[[str], None], limit: float | None) -> None:
        super().__init__(name="mibf-watch", daemon=True)
        self.wakeup, self.report, self.limit = wakeup, report, limit
        self.ended = threading.Event()
        self.expired = False
        self.interrupted = False

    def run(self) -> None:
        """Wait; interrupt the main thread at the time limit, and end the process if it does not react."""
        if self.limit is None:
            status = self._wait(None)
        elif (status := self._wait(SLOW_SECONDS)) is None:
            self.report(f"Ray has not started within {SLOW_SECONDS:g} s; waiting for at most {self.limit:g} s")
            status = self._wait(self.limit - SLOW_SECONDS)
        if status is None:
            self.expired, status = True, 2
            # A background job of a shell script ignores SIGINT; Ray's handler of SIGTERM raises too.
            number = signal.SIGINT if callable(signal.getsignal(signal.SIGINT)) else signal.SIGTERM
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        if status and not self.ended.wait(GRACE_SECONDS):
            self.report(f"mibf: {INTERRUPTED if status == 130 else f'Ray has not started within {self.limit:g} s.'}")
            kill_children()
            os._exit(status)

    def _wait(self, seconds: float | None) -> int | None:
        """Return 130 after a signal that interrupts, 0 at the end of the block, None when the time is up."""
        end = None if seconds is None else time.monotonic() + seconds
        while end is None or end > time.monotonic():
            if not select.select([self.wakeup], [], [], None if end is None else end - time.monotonic())[0]:
                break
            received = self.wakeup.recv(16)  # the numbers of the signals; empty once the other end is closed
            if not received:
                return 0
            if {signal.SIGINT, signal.SIGTERM} & set(received):
                self.interrupted = True
                return 130
        return None


@contextmanager
def ending_within(seconds: float) -> Iterator[None]:
    """Kill the child processes and exit with status 130 if the block takes longer: Ray may wait for processes that died."""

    def give_up() -> None:
        kill_children()
        os._exit(130)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


#: How workers need fewer GPUs.
_FEWER = "use fewer workers, let more of them share a GPU (resources.workers_per_gpu)"


def await_gpus(workers: int, *, per_gpu: int, minutes: float) -> None:
    """Wait until the cluster has a free part of a GPU and a free CPU for each worker; say since when what is waited for.

    A placement group asks for them, so autoscaling starts nodes as it does for tasks, and ends with this process. It is
    removed before the workers start, which then take its place.

    Args:
        workers: their number.
        per_gpu: workers that share a GPU.
        minutes: to wait at most.

    Raises:
        InputError: Ray was started on this machine, or the cluster reports that it never has so many GPUs.
        GpusUnavailableError: they were not there in time.
    """
    number = -(-workers // per_gpu)
    asked, wanted_by = pluralize(number, "GPUs"), pluralize(workers, "workers")
    if per_gpu > 1:
        wanted_by += f" with resources.workers_per_gpu {per_gpu}"
    with_cpus = "a CPU each" if per_gpu == 1 else pluralize(workers, "CPUs")
    if os.environ.get("RAY_ADDRESS", "local") == "local" and _gpus() < number:
        raise InputError(
            f"resources.gpus is true, but this machine has {_gpus()} of the {asked} for {wanted_by}; set RAY_ADDRESS "
            f"to a cluster that has them, {_FEWER}, or set resources.gpus to auto."
        )
    most = (ray._private.state.state.get_max_resources_from_cluster_config() or {}).get("GPU")
    if most is not None and most < number:
        raise InputError(
            f"resources.gpus is true, but this cluster can have at most {most} of the {asked} for {wanted_by}; "
            f"{_FEWER}, raise the limit of its autoscaling, or set resources.gpus to auto."
        )
    since, begun, reported = f"{datetime.now(UTC):%H:%M:%S} UTC", time.monotonic(), -GPU_REPORT_SECONDS
    group = placement_group([WorkerResources(workers, 1, 1, per_gpu).resources] * workers)
    try:
        while not group.wait(timeout_seconds=GPU_SECONDS):
            passed = time.monotonic() - begun
            if passed > 60 * minutes:
                raise GpusUnavailableError(
                    f"resources.gpus is true, but {asked} with {with_cpus} were not free within {minutes:g} min "
                    f"(resources.gpu_wait_minutes); the cluster has {_gpus()}. Check that its autoscaling has a group of "
                    "nodes with GPUs that may grow, and that other jobs leave some; or set resources.gpus to auto."
                )
            if passed - reported > GPU_REPORT_SECONDS:
                reported = passed
                info(
                    f"waiting for {asked} with {with_cpus} since {since}, for at most {minutes:g} min; the cluster has "
                    f"{_gpus()}, and autoscaling is asked for the others"
                )
    finally:
        remove_placement_group(group)


def _gpus() -> int:
    """Number of GPUs of the cluster's live nodes."""
    return int(ray.cluster_resources().get("GPU", 0))
