"""Workspace leases: a file lock on disk, renewed lease objects in an object store."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mibf.errors import InputError
from pipeline.io import lease, storage
from pipeline.io.lease import EXPIRY, EXPIRY_VARIABLE, GRAIN, LeaseHeldError, LeaseLostError, acquire
from tests.support.s3_server import KEY, SECRET, ObjectStore, with_environment

MEMORY = fsspec.filesystem("memory")


# Lease on disk


def test_second_acquire_on_disk_raises_lease_held(tmp_path: Path) -> None:
    workspace = str(tmp_path / "work")
    with acquire(workspace, what="map") as holder:
        holder.check()
        with (
            pytest.raises(LeaseHeldError, match=rf"work: .* \(map, process {os.getpid()} on .* since 20"),
            acquire(workspace),
        ):
            pass
        assert (tmp_path / "work" / "lease.json").exists()
    assert not (tmp_path / "work").exists()
    with acquire(workspace):
        pass


def test_lease_of_dead_process_on_disk_can_be_acquired(tmp_path: Path) -> None:
    program = f"import os\nfrom pipeline.io.lease import acquire\nwith acquire({str(tmp_path)!r}):\n    os._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert (tmp_path / "lease.json").exists()
    with acquire(str(tmp_path)):
        pass


def test_disk_workspace_is_acquired_where_the_system_has_no_file_locks(tmp_path: Path) -> None:
    """As on Windows, where the module `fcntl` does not exist."""
    program = (
        "import sys\n"
        "sys.modules['fcntl'] = None\n"  # makes its import fail
        "from pipeline.io.lease import acquire\n"
        f"with acquire({str(tmp_path)!r}) as holder:\n"
        "    holder.check()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert list(tmp_path.iterdir()) == []


# Lease in an object store: rules, tested in memory


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[str]:
    """A workspace in memory without any lease."""
    place = f"memory://{tmp_path.name}/work"
    yield place
    storage.remove(place)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the lease expiry to one second."""
    monkeypatch.setenv(EXPIRY_VARIABLE, "1")


def lease_numbers(workspace: str) -> list[int]:
    """Return the sorted numbers of the leases in a workspace."""
    return sorted(int(name[:-5]) for name in storage.names(f"{workspace}/lease") if name.endswith(".json"))


def write_lease(workspace: str, number: int, *, age: float = 0.0, **record: Any) -> None:
    """Write a lease of another run, last modified `age` seconds ago by the store's clock."""
    url = f"{workspace}/lease/{number:06d}.json"
    other = {"what": "map", "host": "elsewhere", "pid": 12, "since": "2026-01-01T00:00:00+00:00", "seconds": EXPIRY}
    storage.write_json(url, other | record)
    MEMORY.store[storage.open_url(url)[1]].modified -= timedelta(seconds=age)


@contextmanager
def held_then_lost(workspace: str, why: str = "another run") -> Iterator[lease.Lease]:
    """Hold a workspace and expect the lease to be lost before the block ends."""
    with pytest.raises(LeaseLostError, match=why), acquire(workspace) as holder:
        yield holder


def await_loss(holder: lease.Lease) -> str:
    """Wait until the holder's check raises `LeaseLostError` and return the message."""
    for _ in range(200):
        try:
            holder.check()
        except LeaseLostError as error:
            return str(error)
        time.sleep(0.02)
    raise AssertionError("the holder did not notice that the lease is lost")


def test_lease_in_store_is_exclusive_and_free_immediately_after_release(workspace: str) -> None:
    for number in (1, 2, 3):
        with acquire(workspace, what="map") as holder:
            holder.check()
            with pytest.raises(LeaseHeldError) as refusal, acquire(workspace):
                pass
            assert lease_numbers(workspace) == [number], "older leases are removed"
        assert lease_numbers(workspace) == [number], "numbers are not reused"
    message = str(refusal.value)
    assert message.startswith(f"{workspace}: another run holds the workspace (map, process {os.getpid()} on ")
    assert "renewed 0 s ago); wait for it, or choose another workspace." in message
    assert "If that run is dead, its lease expires in 62 s; then run the same command again." in message


def test_lease_is_taken_over_only_after_its_own_expiry(workspace: str) -> None:
    write_lease(workspace, 7, age=EXPIRY + GRAIN - 2)
    with pytest.raises(LeaseHeldError, match="process 12 on elsewhere since 2026"), acquire(workspace):
        pass
    write_lease(workspace, 7, age=EXPIRY + GRAIN + 1)
    with acquire(workspace) as holder:
        assert lease_numbers(workspace) == [8]
        holder.check()
    # The expiry recorded by the holder counts, not the one of this run.
    write_lease(workspace, 9, age=EXPIRY + GRAIN + 1, seconds=3600)
    with pytest.raises(LeaseHeldError), acquire(workspace):
        pass


def test_lease_expiry_ignores_clocks_of_machines(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lease(workspace, 1, since="2001-01-01T00:00:00+00:00", renewed="2001-01-01T00:00:00+00:00")
    with pytest.raises(LeaseHeldError), acquire(workspace):
        pass
    write_lease(workspace, 1, since="2099-01-01T00:00:00+00:00", renewed="2099-01-01T00:00:00+00:00", age=100)
    monkeypatch.setattr(lease, "_now", lambda: "1970-01-01T00:00:00+00:00")
    with acquire(workspace), pytest.raises(LeaseHeldError, match="since 1970"), acquire(workspace):
        pass


@pytest.mark.usefixtures("quick")
def test_running_holder_renews_its_lease(workspace: str) -> None:
    with acquire(workspace) as holder:
        first = storage.modified(f"{workspace}/lease/000001.json")
        time.sleep(2.5)
        holder.check()
        assert storage.modified(f"{workspace}/lease/000001.json") - first > timedelta(seconds=2)
        assert lease_numbers(workspace) == [1]


@pytest.mark.usefixtures("quick")
def test_holder_raises_lease_lost_after_takeover(workspace: str) -> None:
    with held_then_lost(workspace) as holder:
        write_lease(workspace, 5)
        message = await_loss(holder)
        assert message.startswith(f"{workspace}: this run no longer holds the workspace: another run (map, process 12")
        assert "had not renewed its lease for 1 s; finished work is kept" in message
        assert "run the same command again" in message
        with pytest.raises(LeaseLostError):
            holder.check()
    assert json.loads(storage.read_bytes(f"{workspace}/lease/000005.json"))["pid"] == 12, (
        "the lost lease does not overwrite it"
    )
    # A block that never checks raises at its end; a block that fails raises its own error.
    write_lease(workspace, 5, age=100)
    with held_then_lost(workspace):
        write_lease(workspace, 8)
        time.sleep(0.5)
    write_lease(workspace, 8, age=100)

    def fail() -> None:
        write_lease(workspace, 11)
        time.sleep(0.5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), acquire(workspace):
        fail()


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a switch that starts (True) and ends (False) an outage of the store."""
    is_down = threading.Event()
    real_names = storage.names

    def names(url: str) -> list[str]:
        if is_down.is_set():
            raise ConnectionError("no response from https://user:word@host/x?signature=1")
        return real_names(url)

    monkeypatch.setattr(storage, "names", names)
    return lambda begins: is_down.set() if begins else is_down.clear()


@pytest.mark.usefixtures("quick")
def test_store_outage_longer_than_expiry_loses_the_lease(workspace: str, outage: Callable[[bool], None]) -> None:
    with held_then_lost(workspace, "the lease was not renewed") as holder:
        outage(True)
        time.sleep(0.5)
        holder.check()
        message = await_loss(holder)
        assert (
            "the lease was not renewed for 1 s (ConnectionError: no response from https://host/x), so another may" in message
        )
        outage(False)
        time.sleep(0.5)
        with pytest.raises(LeaseLostError):
            holder.check()


@pytest.mark.usefixtures("quick")
def test_lease_is_reacquired_after_outage_unless_another_run_took_it(workspace: str, outage: Callable[[bool], None]) -> None:
    with acquire(workspace) as holder:
        outage(True)
        time.sleep(1.5)
        outage(False)
        holder.check()
        assert lease_numbers(workspace) == [2]
    with held_then_lost(workspace, "process 12 on elsewhere"):
        outage(True)
        time.sleep(1.5)
        write_lease(workspace, 4, released=True)
        outage(False)


def test_suspended_process_checks_its_lease_before_continuing(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(lease, "_monotonic_seconds", lambda: now)
    with held_then_lost(workspace) as holder:
        now += EXPIRY + 1
        holder.check()
        assert lease_numbers(workspace) == [2]
        now += EXPIRY + 1
        write_lease(workspace, 3, released=True)
        with pytest.raises(LeaseLostError, match="process 12 on elsewhere"):
            holder.check()


def sent_to_worker(holder: lease.Lease) -> lease.Lease:
    """The lease as a worker on another machine receives it."""
    received: lease.Lease = pickle.loads(pickle.dumps(holder.for_workers()))
    return received


def test_workers_see_that_their_drivers_lease_was_taken(workspace: str) -> None:
    with acquire(workspace) as holder:
        at_worker = sent_to_worker(holder)
        at_worker.check()
        write_lease(workspace, 5)
        with pytest.raises(
            LeaseLostError, match=r"this run no longer holds .* \(map, process 12 on elsewhere.*\) took over"
        ):
            at_worker.check()


def test_workers_see_that_their_drivers_lease_has_ended(workspace: str) -> None:
    with acquire(workspace) as holder:
        at_worker = sent_to_worker(holder)
    with pytest.raises(LeaseLostError):
        at_worker.check()
    storage.remove(workspace)
    with pytest.raises(LeaseLostError, match="its lease was removed"):
        at_worker.check()


def test_workers_keep_a_lease_that_their_driver_took_again(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(lease, "_monotonic_seconds", lambda: now)
    with acquire(workspace) as holder:
        at_worker = sent_to_worker(holder)
        now += EXPIRY + 1
        holder.check()
        assert lease_numbers(workspace) == [2]
        at_worker.check()


def test_lease_on_disk_is_the_same_for_workers(tmp_path: Path) -> None:
    with acquire(str(tmp_path)) as holder:
        sent_to_worker(holder).check()


def test_lease_stays_until_expiry_when_release_fails(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, content: bytes) -> None:
        raise ConnectionError(url + str(len(content)))

    with monkeypatch.context() as patch, acquire(workspace):
        patch.setattr(storage, "write_bytes", fail)
    with pytest.raises(LeaseHeldError), acquire(workspace):
        pass


def test_late_creation_of_a_lower_number_yields_to_higher_number(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing and creation, other runs took this number and higher ones, then removed the older leases."""
    create = storage.create_bytes

    def create_late(url: str, content: bytes) -> bool:
        if not storage.names(f"{workspace}/lease"):
            write_lease(workspace, 4)
        return create(url, content)

    monkeypatch.setattr(storage, "create_bytes", create_late)
    with pytest.raises(LeaseHeldError, match="process 12 on elsewhere"), acquire(workspace):
        pass
    assert lease_numbers(workspace) == [4]


def test_creation_counts_when_its_response_was_lost(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = storage.create_bytes
    monkeypatch.setattr(storage, "create_bytes", lambda url, content: create(url, content) and False)
    with acquire(workspace):
        assert lease_numbers(workspace) == [1]


def test_store_without_conditional_writes_is_refused(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "create_bytes", lambda url, content: storage.write_bytes(url, content) is None)
    with (
        pytest.raises(InputError, match=rf"{workspace}: .* \(If-None-Match\).* choose another workspace"),
        acquire(workspace),
    ):
        pass
    assert lease_numbers(workspace) == []


@pytest.mark.parametrize("value", ["soon", "", "0", "-1", "nan", "inf", "60 s"])
def test_invalid_expiry_variable_is_refused(value: str, workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXPIRY_VARIABLE, value)
    with pytest.raises(InputError, match=f"MIBF_LEASE_SECONDS={value}: must be a number of seconds"), acquire(workspace):
        pass
    assert lease_numbers(workspace) == []


def test_unreadable_lease_still_counts_as_held(workspace: str) -> None:
    storage.write_bytes(f"{workspace}/lease/000001.json", b"half of a fi")
    with pytest.raises(LeaseHeldError, match="a run that is just starting"), acquire(workspace):
        pass


# Lease in an object store: a real server


@pytest.mark.slow
def test_concurrent_create_bytes_on_s3_succeeds_exactly_once(used_bucket: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(3):  # a round takes seconds: the server resolves such races by waiting
            url, barrier = used_bucket.url("create", str(round_)), threading.Barrier(8)

            def create(content: bytes, url: str = url, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                return storage.create_bytes(url, content)

            contents = [bytes([i]) * 1000 for i in range(8)]
            created = list(pool.map(create, contents))
            assert created.count(True) == 1
            assert storage.read_bytes(url) == contents[created.index(True)]


@pytest.mark.slow
def test_concurrent_acquires_on_s3_never_overlap(used_bucket: ObjectStore) -> None:
    """Eight runs acquire and release the lease without pause; no two hold it at the same time."""
    workspace, inside, most, taken, refused = used_bucket.url("race"), [0], [0], [0], [0]
    deadline, guard = time.monotonic() + 6, threading.Lock()

    def run(who: int) -> None:
        while time.monotonic() < deadline:
            try:
                with acquire(workspace, what=str(who)) as holder:
                    with guard:
                        inside[0] += 1
                        taken[0] += 1
                        most[0] = max(most[0], inside[0])
                    holder.check()
                    with guard:
                        inside[0] -= 1
            except LeaseHeldError:
                with guard:
                    refused[0] += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))
    assert most == [1]
    assert taken[0] > 5
    assert refused[0] > 5
    assert max(lease_numbers(workspace)) >= taken[0]


@contextmanager
def holding_process(bucket: ObjectStore, workspace: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a workspace until it reads a line, then prints an error if it had lost the lease."""
    program = (
        "from pipeline.io.lease import LeaseLostError, acquire\n"
        f"with acquire({workspace!r}) as holder:\n"
        "    print('held', flush=True)\n"
        "    input()\n"
        "    try:\n"
        "        holder.check()\n"
        "    except LeaseLostError as error:\n"
        "        print(error, flush=True)\n"
    )
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE
    environment = with_environment(bucket)
    with (
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process,
        ExitStack() as ended,
    ):
        ended.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def acquire_when_free(workspace: str, stack: ExitStack) -> float:
    """Hold a workspace as soon as it is free; return the seconds waited."""
    begun = time.monotonic()
    while time.monotonic() < begun + 30:
        try:
            stack.enter_context(acquire(workspace))
            break
        except LeaseHeldError:
            time.sleep(0.1)
    return time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_lease_of_killed_run_on_s3_blocks_until_expiry(used_bucket: ObjectStore) -> None:
    workspace = used_bucket.url("lease-of-killed")
    with holding_process(used_bucket, workspace) as process:
        time.sleep(1 + 2 * GRAIN)
        with pytest.raises(LeaseHeldError, match=f"process {process.pid} on"), acquire(workspace):
            pass
        process.kill()
        with ExitStack() as stack:
            assert GRAIN < acquire_when_free(workspace, stack) < 1 + GRAIN + 3


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_suspended_run_on_s3_loses_lease_to_another_run(used_bucket: ObjectStore) -> None:
    workspace = used_bucket.url("lease-of-late")
    with holding_process(used_bucket, workspace) as process, ExitStack() as stack:
        process.send_signal(signal.SIGSTOP)
        assert GRAIN < acquire_when_free(workspace, stack) < 1 + GRAIN + 3
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate("\n", timeout=60)
        assert f"another run (mibf, process {os.getpid()} on " in output
        with pytest.raises(LeaseHeldError, match=f"process {os.getpid()} on "), acquire(workspace):
            pass


@pytest.mark.slow
def test_lease_has_no_credentials_and_denied_access_is_reported(used_bucket: ObjectStore) -> None:
    with acquire(used_bucket.url("denied"), what="map"):
        (name,) = used_bucket.files.find(f"{used_bucket.bucket}/denied/lease")
        content = used_bucket.files.cat_file(name).decode()
        assert set(json.loads(content)) == {"what", "host", "pid", "since", "seconds", "id", "renewed"}
        assert SECRET not in content
        assert KEY not in content
    with (
        pytest.raises(InputError, match=r"s3://not-ours/work: access denied .* check the credentials"),
        acquire("s3://not-ours/work"),
    ):
        pass
