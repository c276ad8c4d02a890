"""What Ray needs is checked before it starts, and no wait for Ray is endless or deaf to signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from jobs.runtime import ray_cluster, ray_start
from mibf.errors import InputError
from tests.support.paths import ROOT

#: A call of Ray that swallows interruptions, in a process with a child; it signals itself once the child runs.
DEAF = """
import os, signal, subprocess, sys, time
from jobs.runtime import ray_start
from jobs.runtime.signals import sigterm_interrupts
ray_start.GRACE_SECONDS = 0.2
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run as a background job, which ignores it
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], **quiet)
print(child.pid, flush=True)
with sigterm_interrupts(), ray_start.watched(lambda line: print(line, flush=True)):
    signals = [getattr(signal, sys.argv[1])]
    while True:
        try:
            if signals:
                os.kill(os.getpid(), signals.pop())
            time.sleep(300)
        except KeyboardInterrupt:
            pass
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder with a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as folder:
        yield Path(folder)


def test_longest_temporary_folder_is_the_longest_below_which_sockets_can_be_bound(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted, bound = [], []
    for length in range(34, 48):
        folder = short_folder / ("x" * (length - len(str(short_folder)) - 1))
        sockets = folder / f"ray/session_2026-11-26_13-20-47_142902_{os.getpid()}/sockets"
        sockets.mkdir(parents=True)
        monkeypatch.setenv("TMPDIR", str(folder))
        try:
            ray_start.check_machine()
            accepted.append(length)
        except InputError as error:
            assert str(error).startswith(f"TMPDIR={folder}: its path has {length} characters")  # noqa: PT017  # both outcomes are expected
        with socket.socket(socket.AF_UNIX) as server:
            try:
                server.bind(str(sockets / "plasma_store"))
                bound.append(length)
            except OSError:
                pass
    assert accepted == bound
    assert 34 in bound
    assert 47 not in bound


def test_unwritable_temporary_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with pytest.raises(InputError, match=r"/proc/nowhere/ray: Ray cannot write .* Set RAY_TMPDIR to a writable folder"):
        ray_start.check_machine()


def test_loopback_interface_that_is_down_is_refused(monkeypatch: pytest.MonkeyPatch, short_folder: Path) -> None:
    def unreachable(*_: object, **__: object) -> socket.socket:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setenv("TMPDIR", str(short_folder))
    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(InputError, match=r"127\.0\.0\.1: .*Network is unreachable.*ip link set lo up"):
        ray_start.check_machine()


def test_home_that_cannot_be_written_gets_a_token_for_the_process(
    monkeypatch: pytest.MonkeyPatch, short_folder: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(short_folder))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    monkeypatch.setenv("HOME", str(short_folder))
    ray_start.check_machine()
    assert os.environ["RAY_AUTH_TOKEN"] == "", "Ray saves one in the home folder itself"
    monkeypatch.setenv("HOME", "/proc/nowhere")
    ray_start.check_machine()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8265", "is the address of a job server. Set RAY_ADDRESS to the head node's HOST:6379"),
        ("head", "no Ray cluster can be reached there"),
        ("head:first", "no Ray cluster can be reached there"),
    ],
)
def test_address_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch, address: str, expected: str) -> None:
    assert not ray.is_initialized()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError) as refused:
        ray_cluster.ensure(workers=1)
    assert str(refused.value).startswith(f"RAY_ADDRESS={address}: {expected}")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restore the handlers of signals after a test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def exits(number: int, _: object) -> None:
    """Handle a signal as Ray does."""
    raise SystemExit(number)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("interrupt", "terminate"),
    [(signal.default_int_handler, signal.SIG_IGN), (signal.SIG_IGN, exits)],
    ids=["terminal", "background job"],
)
def test_slow_start_is_reported_and_ends_at_the_limit(
    monkeypatch: pytest.MonkeyPatch, interrupt: Any, terminate: Any
) -> None:
    monkeypatch.setattr(ray_start, "SLOW_SECONDS", 0.05)
    lines: list[str] = []
    signal.signal(signal.SIGINT, interrupt)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def endless() -> None:
        with ray_start.watched(lines.append, limit=0.2):
            signal.signal(signal.SIGTERM, terminate)  # Ray sets its own handlers
            threading.Event().wait(100)

    with pytest.raises(ray_start.StartTimeoutError):
        endless()
    assert lines == ["Ray has not started within 0.05 s; waiting for at most 0.2 s"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signal_ends_a_call_that_ignores_it_and_its_child_processes(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEAF, name],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    child, *said = done.stdout.splitlines()
    assert done.returncode == 130, done.stderr
    assert said == ["mibf: interrupted; run the same command again to resume."]
    deadline = time.monotonic() + 30
    while running(int(child)) and time.monotonic() < deadline:
        time.sleep(0.05)  # a killed process ends a moment after the signal was sent
    assert not running(int(child))


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_call_that_fails_after_a_signal_counts_as_interrupted(number: signal.Signals) -> None:
    def call() -> None:
        with ray_start.watched(print):
            os.kill(os.getpid(), number)
            time.sleep(0.5)
            raise OSError("the processes of Ray that got the signal too do not answer any more")

    signal.signal(number, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        call()


def running(pid: int) -> bool:
    """Return whether a process is running; an unreaped zombie is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_failed_start_leaves_no_processes(monkeypatch: pytest.MonkeyPatch, short_folder: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def init(**_: object) -> None:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]))
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("TMPDIR", str(short_folder))
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=r"Ray cannot be started on this machine \(The current node timed out"):
        ray_cluster.ensure(workers=1)
    assert started[0].wait(timeout=30) == -signal.SIGKILL
