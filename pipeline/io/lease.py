"""The workspace lease: one writer at a time in a workspace.

A workspace on a disk is guarded by a file lock, which the operating system releases when its holder dies. An object store
has no locks; there a workspace is guarded by leases, which only require that the store can create a file if absent.
`WORKSPACE/lease/000007.json` is the seventh lease on a workspace:

- The run with the highest number holds the workspace, until it marks its file as released or fails to renew it for the time
  stated in the file. Then the next number may be created, by one run only.
- The file with the highest number is never removed, released or not: numbers are not reused, and a holder that was presumed
  dead will always find a higher number than its own.
- A run that is delayed between finding the highest number and creating the next may find that number free again, because
  others have since taken it and higher ones, and removed them. So every run checks again after creating, and yields to a
  higher number.
- A holder writes only to its own number. A renewal that arrives late, after another run has taken over, changes nothing.
- A holder that could not renew in time takes the next number, like any other run. If it succeeds, no other run intervened.
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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mibf.errors import InputError
from pipeline.io import storage

try:
    import fcntl
except ImportError:  # Windows has no such locks: local workspaces are not guarded there
    fcntl = None  # type: ignore[assignment]  # a module on other systems

_HAS_LOCKS = fcntl is not None
LEASE_FILE, LEASE_FOLDER = "lease.json", "lease"
#: Seconds after which a lease that is not renewed expires, the variable that overrides them, and renewals in that time.
EXPIRY, EXPIRY_VARIABLE, BEATS = 60.0, "MIBF_LEASE_SECONDS", 6
#: Seconds that other runs wait beyond a lease's expiry: stores report whole seconds, and server clocks differ a little.
GRAIN = 2.0
#: Attempts to acquire a workspace while other runs acquire and release it.
TRIES = 10
_NAME = re.compile(r"(\d{6,})\.json")


class LeaseHeldError(Exception):
    """Another run holds the workspace; the message says which."""


class LeaseLostError(Exception):
    """The run has lost the workspace lease, or may have; the message says why, and what to do."""


class Lease:
    """The workspace lease as its holder sees it. A lease on a disk is not lost while its process lives."""

    def for_workers(self) -> Lease:
        """The lease as processes on other machines can check it; can be pickled."""
        return self

    def check(self) -> None:
        """Check that the lease is still held; call this before every step that cannot be undone.

        Costs nothing while renewals succeed. If none has succeeded for the lease's duration, the store is queried once more.

        Raises:
            LeaseLostError: another run has taken over, or may have.
        """


@contextmanager
def acquire(workspace: str, *, what: str = "mibf") -> Iterator[Lease]:
    """Acquire the lease on a workspace for the duration of the block.

    Args:
        workspace: a folder or a URL.
        what: the work that the lease is for, as reported to other runs.

    Raises:
        LeaseHeldError: another run holds it.
        LeaseLostError: the block completed, but another run has taken over meanwhile, or may have.
        InputError: the object store denies access, does not respond or cannot keep two runs apart; or
            `MIBF_LEASE_SECONDS` is not a duration.
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
                os.remove(path)  # before the lock is released, so that no run ends up with a lock on a removed file
                os.close(lock)


def apparent_holder(workspace: str) -> str | None:
    """Describe the run that appears to hold a workspace, from the files there; None if there is none.

    For display only: it writes nothing, and compares the store's times with this machine's clock.
    """
    if storage.is_local(workspace):
        path = Path(storage.join(storage.local_path(workspace), LEASE_FILE))
        try:
            record = path.read_bytes()
        except OSError:
            return None
        return _describe_holder(record)  # removed when its holder ends, unless the holder was killed
    folder = storage.join(workspace, LEASE_FOLDER)
    try:
        url = storage.join(folder, f"{_highest(folder):06d}.json")
        content = storage.read_bytes(url)
        age = (datetime.now(UTC) - storage.modified(url)).total_seconds()
    except FileNotFoundError:
        return None
    fields = _read(content)
    if fields.get("released") or age > float(fields.get("seconds", EXPIRY)) + GRAIN:
        return None
    return _describe_holder(content)


def _locked(path: str, workspace: str) -> int:
    """Lock and empty the lease file; return its descriptor."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe_holder(os.read(lock, 10000))
            os.close(lock)
            raise LeaseHeldError(
                f"{workspace}: another run holds the workspace ({holder}); wait for it, or choose another workspace. "
                "The lease ends with that process."
            ) from None
        try:
            if Path(path).stat().st_ino == os.fstat(lock).st_ino:
                os.ftruncate(lock, 0)
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)  # its holder removed it between our opening and locking it


class _StoreLease(Lease):
    """A lease on a workspace in an object store, renewed by a thread from acquisition until it is released or lost."""

    def __init__(self, workspace: str, what: str) -> None:
        self._workspace = workspace
        self._folder = storage.join(workspace, LEASE_FOLDER)
        self._expiry = expiry()
        self._record = _record(what) | {"seconds": self._expiry, "id": uuid.uuid4().hex}
        self._number = 0
        self._renewed = 0.0
        self._failure = "its process was suspended"
        self._lost: str | None = None
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="mibf-lease", daemon=True)

    def for_workers(self) -> Lease:
        """See `Lease.for_workers`."""
        return _WorkerLease(self._workspace, self._record["id"])

    def take(self) -> None:
        """Acquire the lease and start renewing it; errors as for `acquire`."""
        with storage.as_input_errors(self._workspace):
            holder = self._taken_by()
        if holder is not None:
            raise LeaseHeldError(f"{storage.redact_url(self._workspace)}: another run holds the workspace {holder}.")
        self._thread.start()

    def check(self) -> None:
        """See `Lease.check`."""
        if self._lost is None and self._is_late():
            with self._renewing:
                if self._lost is None and self._is_late():
                    self._renew()
                if self._lost is None and self._is_late():
                    self._lost = (
                        f"the lease was not renewed for {self._expiry:g} s ({self._failure}), so another may hold it"
                    )
        if self._lost is not None:
            raise LeaseLostError(_lost_message(self._workspace, self._lost))

    def release(self) -> None:
        """Release the lease for the next run. If the store does not respond, the lease expires by itself."""
        self._ended.set()
        self._thread.join(self._expiry / BEATS)
        # A renewal that is still in flight would turn a released lease back into a live one.
        if self._lost is None and not self._is_late() and not self._thread.is_alive():
            with suppress(Exception):  # each file system raises its own types; the failure to report is that of the work
                self._write(released=True)

    def _taken_by(self) -> str | None:
        """Acquire the lease; if another run holds it, return which one, until when, and what to do."""
        for _ in range(TRIES):
            started = _monotonic_seconds()
            highest = _highest(self._folder)
            try:
                holder = self._holder(highest) if highest else None
            except FileNotFoundError:  # superseded by a higher number, and removed
                continue
            if holder is not None or self._create(highest + 1, started):
                return holder
        return "(several runs are starting); try again, or choose another workspace"

    def _holder(self, number: int) -> str | None:
        """Describe the holder of a lease, when it expires and what to do; None if it was released or has expired."""
        url = self._file(number)
        content = storage.read_bytes(url)
        record = _read(content)
        if record.get("released"):
            return None
        # Both times are by the store's own clock: the machines' clocks may be wrong, each by a different amount.
        clock = storage.join(self._folder, "clock")
        storage.write_bytes(clock, b"")
        age = (storage.modified(clock) - storage.modified(url)).total_seconds()
        left = float(record.get("seconds", self._expiry)) + GRAIN - age
        if left < 0:
            return None
        return (
            f"({_describe_holder(content)}, renewed {max(age, 0):.0f} s ago); wait for it, or choose another workspace. "
            f"If that run is dead, its lease expires in {left:.0f} s; then run the same command again"
        )

    def _create(self, number: int, started: float) -> bool:
        """Create a lease with a free number; False if another run has that number, or a higher one."""
        url, content = self._file(number), self._content()
        if not storage.create_bytes(url, content) and not _holds(url, content):
            return False
        if storage.create_bytes(url, content):
            storage.remove(url)
            raise InputError(
                f"{storage.redact_url(self._workspace)}: this object store overwrote a file that it was asked to create "
                "only if absent (If-None-Match), so two runs could not be kept apart; choose another workspace."
            )
        if _highest(self._folder) > number:
            storage.remove(url)
            return False
        self._number, self._renewed = number, started
        with suppress(Exception):  # each file system raises its own types; the next holder removes the rest
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
        """Renew the lease, or record that it is lost; a failure is recorded, and the next call tries again."""
        started = _monotonic_seconds()
        try:
            highest = _highest(self._folder)
            if highest <= self._number and not self._is_late():
                self._write()
                self._renewed = started
            elif highest > self._number or not self._create(self._number + 1, started):
                holder = _describe_holder(storage.read_bytes(self._file(_highest(self._folder))))
                self._lost = (
                    f"another run ({holder}) took over because this one had not renewed its lease for {self._expiry:g} s"
                )
        except Exception as error:  # each file system raises its own types for an unavailable store
            self._failure = f"{type(error).__name__}: {storage.without_queries(str(error))}"

    def _is_late(self) -> bool:
        """Whether others may consider the lease expired. Counted from before a renewal was sent, so sooner than they do."""
        return _monotonic_seconds() - self._renewed > self._expiry

    def _write(self, **more: bool) -> None:
        storage.write_bytes(self._file(self._number), self._content(**more))

    def _content(self, **more: bool) -> bytes:
        return json.dumps(self._record | {"renewed": _now()} | more).encode()

    def _file(self, number: int) -> str:
        return storage.join(self._folder, f"{number:06d}.json")


@dataclass(frozen=True)
class _WorkerLease(Lease):
    """The lease of a driver, as its workers see it: the store is queried at each check."""

    workspace: str
    id: str

    def check(self) -> None:
        """See `Lease.check`; raises what the file system raises if the store does not respond."""
        folder = storage.join(self.workspace, LEASE_FOLDER)
        for _ in range(TRIES):
            number = _highest(folder)
            try:
                content = storage.read_bytes(storage.join(folder, f"{number:06d}.json"))
            except FileNotFoundError:  # superseded by a higher number, and removed
                continue
            record = _read(content)
            if record.get("id") == self.id and not record.get("released"):
                return
            holder = f"another run ({_describe_holder(content)}) took over"
            break
        else:
            holder = "its lease was removed"
        raise LeaseLostError(_lost_message(self.workspace, holder))


def _lost_message(workspace: str, why: str) -> str:
    return (
        f"{storage.redact_url(workspace)}: this run no longer holds the workspace: {why}; finished work is kept. Once no "
        "other run is active there, run the same command again to resume."
    )


def _numbers(folder: str) -> list[int]:
    found = (_NAME.fullmatch(name) for name in storage.names(folder))
    return [int(match[1]) for match in found if match]


def _highest(folder: str) -> int:
    return max(_numbers(folder), default=0)


def _holds(url: str, content: bytes) -> bool:
    """Whether a file that could not be created is what this run wrote: the response to its own request was lost."""
    try:
        return storage.read_bytes(url) == content
    except FileNotFoundError:  # another run's, removed since
        return False


def expiry() -> float:
    """Seconds after which a lease that is not renewed expires, from the environment.

    Raises:
        InputError: the environment sets no valid duration.
    """
    value = os.environ.get(EXPIRY_VARIABLE, str(EXPIRY))
    try:
        seconds = float(value)
    except ValueError:
        seconds = float("nan")
    if not 1 <= seconds < float("inf"):
        raise InputError(
            f"{EXPIRY_VARIABLE}={value}: must be a number of seconds, at least 1; unset it for the default of {EXPIRY:g}."
        )
    return seconds


def _record(what: str) -> dict[str, Any]:
    """The description of a holder that other runs report."""
    return {"what": what, "host": socket.gethostname(), "pid": os.getpid(), "since": _now()}


def _read(content: bytes) -> dict[str, Any]:
    """Parse a holder's record; empty if it is unreadable, as while a holder on a disk is starting."""
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _describe_holder(content: bytes) -> str:
    """Format a holder's record, from its content as written."""
    record = _read(content)
    if not record:
        return "a run that is just starting"
    return "{what}, process {pid} on {host} since {since}".format_map({"what": "mibf"} | record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _monotonic_seconds() -> float:
    """Seconds on a clock that includes the time the machine is suspended: leases expire meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
