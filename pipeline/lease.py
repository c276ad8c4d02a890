"""One writer at a time in a local workspace: a lock that the system lets go of when its holder dies.

Workspaces on object stores are not guarded yet.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline import storage

try:
    import fcntl
except ImportError:  # Windows has no such locks; there nothing is guarded
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

LEASE_FILE = "lease.json"


class LeaseHeldError(Exception):
    """Another run holds the workspace; the message says which."""


@contextmanager
def held(workspace: str) -> Iterator[None]:
    """Hold a workspace while the block runs.

    Raises:
        LeaseHeldError: another process holds it.
    """
    if fcntl is None or not storage.is_local(workspace):
        yield
        return
    with storage.folder_in_use(workspace):
        path = storage.join(storage.local_path(workspace), LEASE_FILE)
        lease = _locked(path, workspace)
        try:
            os.write(lease, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}).encode())
            yield
        finally:
            os.remove(path)  # before the lock is let go, so that nobody is left with a lock on a removed file
            os.close(lease)


def _locked(path: str, workspace: str) -> int:
    """The descriptor of the lease, locked and empty."""
    while True:
        lease = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lease, 1000).decode() or "a run that is just starting"
            os.close(lease)
            raise LeaseHeldError(
                f"{workspace}: another run holds the workspace ({holder}); wait for it, or choose another workspace."
            ) from None
        try:
            if Path(path).stat().st_ino == os.fstat(lease).st_ino:
                os.ftruncate(lease, 0)
                return lease
        except FileNotFoundError:
            pass
        os.close(lease)  # its holder removed it between our opening and locking it


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
