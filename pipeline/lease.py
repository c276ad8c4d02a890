"""One writer at a time in a workspace.

A workspace on a disk is guarded by a lock, which the system lets go of when its holder dies. An object store has no locks;
there a workspace is guarded by leases, which need nothing of the store but that a file is created only where there is none.
`WORKSPACE/lease/000007.json` is the seventh lease on a workspace:

- Whose number is the highest holds the workspace, until it marks its file as released or has not renewed it for as long as
  the file says. Then the next number may be created, by one run alone.
- The file of the highest number is never removed, released or not: no number comes up a second time, and a holder that was
  given up for dead finds a higher number than its own for ever.
- Who looked for the highest number, was held up and then creates the next may find that number free again: others took it
  and higher ones meanwhile, and cleared away. So everybody looks once more after creating, and gives way to a higher number.
- A holder writes to its own number alone. A renewal that arrives late, when another run has taken over, changes nothing.
- A holder that could not renew in time takes the next number, as anybody would. If it gets it, nobody came between.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mibf.errors import InputError
from pipeline import storage

try:
    import fcntl
except ImportError:  # Windows has no such locks; there nothing on a disk is guarded
    fcntl = None  # type: ignore[assignment]  # a module elsewhere
_HAS_LOCKS = fcntl is not None

LEASE_FILE, LEASE_FOLDER = "lease.json", "lease"

#: Seconds after which a lease that was not renewed ends, the variable that changes them, and the renewals in that time.
EXPIRY, EXPIRY_VARIABLE, BEATS = 60.0, "MIBF_LEASE_SECONDS", 6
#: Seconds that others wait beyond a lease's end: stores tell times in whole seconds, and their servers differ a little.
GRAIN = 2.0
#: How often a workspace is looked at anew where other runs take and release it at the same time.
TRIES = 10

_NAME = re.compile(r"(\d{6,})\.json")


class LeaseHeldError(Exception):
    """Another run holds the workspace; the message says which."""


class LeaseLostError(Exception):
    """The workspace that a run held is another's, or may be; the message says why, and what to do."""


class Lease:
    """A workspace as its holder has it. That of a workspace on a disk is not lost while its process lives."""

    def check(self) -> None:
        """See that the workspace is still held; call it before what another run must not find changed.

        Costs nothing while renewals succeed. When none has for as long as the lease lasts, the store is asked once more.

        Raises:
            LeaseLostError: another run has taken over, or may have.
        """


@contextmanager
def held(workspace: str, *, what: str = "mibf") -> Iterator[Lease]:
    """Hold a workspace while the block runs.

    Args:
        workspace: a folder or a URL.
        what: the work that it is held for, as other runs are told.

    Raises:
        LeaseHeldError: another run holds it.
        LeaseLostError: the block ended as if nothing were, and another run has taken over meanwhile, or may have.
        InputError: it is in an object store that refuses access, does not answer or cannot keep two runs apart; or
            `MIBF_LEASE_SECONDS` is not a time.
    """
    if not storage.is_local(workspace):
        lease = _StoreLease(workspace, what)
        lease.take()
        try:
            yield lease
            lease.check()
        finally:
            lease.release()
    elif not _HAS_LOCKS:
        yield Lease()
    else:
        with storage.folder_in_use(workspace):
            path = storage.join(storage.local_path(workspace), LEASE_FILE)
            lock = _locked(path, workspace)
            try:
                os.write(lock, json.dumps(_record(what)).encode())
                yield Lease()
            finally:
                os.remove(path)  # before the lock is let go, so that nobody is left with a lock on a removed file
                os.close(lock)


def apparent_holder(workspace: str) -> str | None:
    """Who seems to be at work in a workspace, by what is written there; None where nobody is.

    For the eye alone: it writes nothing, and takes the clock of this machine for the store's.
    """
    if storage.is_local(workspace):
        path = Path(storage.join(storage.local_path(workspace), LEASE_FILE))
        try:
            record = path.read_bytes()
        except OSError:
            return None
        return _described(record)  # it goes with its holder's end, but for a killed one's
    folder = storage.join(workspace, LEASE_FOLDER)
    try:
        url = storage.join(folder, f"{_highest(folder):06d}.json")
        content = storage.read_bytes(url)
        age = (datetime.now(UTC) - storage.modified(url)).total_seconds()
    except FileNotFoundError:
        return None
    record_ = _read(content)
    if record_.get("released") or age > float(record_.get("seconds", EXPIRY)) + GRAIN:
        return None
    return _described(content)


def _locked(path: str, workspace: str) -> int:
    """The descriptor of the lease's file, locked and empty."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _described(os.read(lock, 10000))
            os.close(lock)
            raise LeaseHeldError(
                f"{workspace}: another run holds the workspace ({holder}); wait for it, or choose another workspace. "
                "Its hold ends with its process."
            ) from None
        try:
            if Path(path).stat().st_ino == os.fstat(lock).st_ino:
                os.ftruncate(lock, 0)
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)  # its holder removed it between our opening and locking it


class _StoreLease(Lease):
    """A lease on a workspace in an object store, renewed by a thread from when it is taken until it is released or lost."""

    def __init__(self, workspace: str, what: str) -> None:
        self._workspace = workspace
        self._folder = storage.join(workspace, LEASE_FOLDER)
        self._expiry = expiry()
        self._record = _record(what) | {"seconds": self._expiry, "id": uuid.uuid4().hex}
        self._number = 0
        self._renewed = 0.0
        self._failure = "its process stood still"
        self._lost: str | None = None
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="mibf-lease", daemon=True)

    def take(self) -> None:
        """Take the workspace, and have it renewed from now on; errors as for `held`."""
        with storage.reached(self._workspace):
            holder = self._taken_by()
        if holder is not None:
            raise LeaseHeldError(f"{storage.shown(self._workspace)}: another run holds the workspace {holder}.")
        self._thread.start()

    def check(self) -> None:
        """As for `Lease`."""
        if self._lost is None and self._is_late():
            with self._renewing:
                if self._lost is None and self._is_late():
                    self._renew()
                if self._lost is None and self._is_late():
                    self._lost = f"it could not be renewed for {self._expiry:g} s ({self._failure}), and another may have it"
        if self._lost is not None:
            raise LeaseLostError(
                f"{storage.shown(self._workspace)}: this run does not hold the workspace any longer: {self._lost}; "
                "what it finished is kept: when no other run is at work there, run the same command again to go on."
            )

    def release(self) -> None:
        """Let the next run have the workspace at once. Where the store does not answer, the lease ends by itself."""
        self._ended.set()
        self._thread.join(self._expiry / BEATS)
        # What a thread that still waits for the store has sent would make a released lease a live one again.
        if self._lost is None and not self._is_late() and not self._thread.is_alive():
            with suppress(Exception):  # each file system has its own; the work's own failure is what should be told
                self._write(released=True)

    def _taken_by(self) -> str | None:
        """Take the workspace; where another run has it, say who, until when, and what to do."""
        for _ in range(TRIES):
            begun = _ticks()
            highest = _highest(self._folder)
            try:
                holder = self._holder(highest) if highest else None
            except FileNotFoundError:  # a higher one has come since, and this was cleared away
                continue
            if holder is not None or self._create(highest + 1, begun):
                return holder
        return "(several are just starting); try again, or choose another workspace"

    def _holder(self, number: int) -> str | None:
        """Who has a lease, until when, and what to do; None where it was released or has ended."""
        url = self._file(number)
        content = storage.read_bytes(url)
        record = _read(content)
        if record.get("released"):
            return None
        # Both times are by the store's own clock: those of the machines may be wrong, and each by another amount.
        clock = storage.join(self._folder, "clock")
        storage.write_bytes(clock, b"")
        age = (storage.modified(clock) - storage.modified(url)).total_seconds()
        left = float(record.get("seconds", self._expiry)) + GRAIN - age
        if left < 0:
            return None
        return (
            f"({_described(content)}, renewed {max(age, 0):.0f} s ago); wait for it, or choose another workspace. "
            f"If that run is dead, its hold ends in {left:.0f} s: then run the same command again"
        )

    def _create(self, number: int, begun: float) -> bool:
        """Take a number that was free; false where another run has it, or a higher one."""
        url, content = self._file(number), self._content()
        if not storage.create_bytes(url, content) and not _holds(url, content):
            return False
        if storage.create_bytes(url, content):
            storage.remove(url)
            raise InputError(
                f"{storage.shown(self._workspace)}: this object store writes over a file that it was asked to create only "
                "where there is none (If-None-Match), so that two runs could not be kept apart; choose another workspace."
            )
        if _highest(self._folder) > number:
            storage.remove(url)
            return False
        self._number, self._renewed = number, begun
        with suppress(Exception):  # each file system has its own; what is left the next holder removes
            for older in _numbers(self._folder):
                if older < number:
                    storage.remove(self._file(older))
        return True

    def _beat(self) -> None:
        while self._lost is None and not self._ended.wait(self._expiry / BEATS):
            with self._renewing:
                if self._lost is None:
                    self._renew()

    def _renew(self) -> None:
        """Renew the lease, or see that it is lost; what fails is remembered, and tried again by the next call."""
        begun = _ticks()
        try:
            highest = _highest(self._folder)
            if highest <= self._number and not self._is_late():
                self._write()
                self._renewed = begun
            elif highest > self._number or not self._create(self._number + 1, begun):
                self._lost = (
                    f"another run ({_described(storage.read_bytes(self._file(_highest(self._folder))))}) took over, because "
                    f"this one had not renewed its hold for {self._expiry:g} s"
                )
        except Exception as error:  # each file system has its own for a store that is away
            self._failure = f"{type(error).__name__}: {storage.without_queries(str(error))}"

    def _is_late(self) -> bool:
        """Whether others may take the lease for ended. Counted from before a renewal was sent, so sooner than they count."""
        return _ticks() - self._renewed > self._expiry

    def _write(self, **more: bool) -> None:
        storage.write_bytes(self._file(self._number), self._content(**more))

    def _content(self, **more: bool) -> bytes:
        return json.dumps(self._record | {"renewed": _now()} | more).encode()

    def _file(self, number: int) -> str:
        return storage.join(self._folder, f"{number:06d}.json")


def _numbers(folder: str) -> list[int]:
    found = (_NAME.fullmatch(name) for name in storage.names(folder))
    return [int(match[1]) for match in found if match]


def _highest(folder: str) -> int:
    return max(_numbers(folder), default=0)


def _holds(url: str, content: bytes) -> bool:
    """Whether a file is what this run wrote, though it was told that there is one: the answer to its writing was lost."""
    try:
        return storage.read_bytes(url) == content
    except FileNotFoundError:  # another's, cleared away since
        return False


def expiry() -> float:
    """Seconds after which a lease that was not renewed ends, as the environment has it.

    Raises:
        InputError: it has no such time.
    """
    value = os.environ.get(EXPIRY_VARIABLE, str(EXPIRY))
    try:
        seconds = float(value)
    except ValueError:
        seconds = float("nan")
    if not 1 <= seconds < float("inf"):
        raise InputError(f"{EXPIRY_VARIABLE}={value}: must be a number of seconds, 1 or more; leave it out for {EXPIRY:g}.")
    return seconds


def _record(what: str) -> dict[str, Any]:
    """What other runs are told of a holder."""
    return {"what": what, "host": socket.gethostname(), "pid": os.getpid(), "since": _now()}


def _read(content: bytes) -> dict[str, Any]:
    """A holder's record; empty where it cannot be read, as while a holder on a disk is just starting."""
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _described(content: bytes) -> str:
    """A holder in words, from its record as written."""
    record = _read(content)
    if not record:
        return "one that is just starting"
    return "{what}, process {pid} on {host} since {since}".format_map({"what": "mibf"} | record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ticks() -> float:
    """Seconds that go on while the machine sleeps: a lease does not wait for it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
