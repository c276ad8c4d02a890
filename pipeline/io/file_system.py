"""What the file system of a workspace on a disk must be able to do, checked in one place before any work.

Hard links are used where there are any; exFAT, CIFS and gcsfuse do without (`pipeline.io.storage.create_bytes`,
`pipeline.io.zarr_store`). Object stores are checked by what they are asked to do (`pipeline.io.lease`).
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from mibf.errors import InputError
from pipeline.io import storage

try:
    import fcntl
except ImportError:  # Windows has no such locks: local workspaces are not guarded there
    fcntl = None  # type: ignore[assignment]  # a module on other systems

_HAS_LOCKS = fcntl is not None

#: Workspaces that were checked by this process.
_checked: set[str] = set()


def check_file_system(workspace: str) -> None:
    """Check, once per process, that the file system of a workspace can do what mibf needs; leave nothing behind.

    Raises:
        InputError: it cannot; the message says what, why and what to do.
    """
    if not storage.is_local(workspace) or workspace in _checked:
        return
    with storage.folder_in_use(workspace):
        folder = Path(storage.local_path(workspace)) / f".mibf-{uuid.uuid4().hex}"
        folder.mkdir()
        try:
            for what, why, probe in _PROBES:
                try:
                    fails = not probe(folder)
                    cause = "it does so without an error, but with a wrong result"
                except OSError as error:
                    fails, cause = True, error.strerror or str(error)
                if fails:
                    raise InputError(
                        f"workspace {workspace}: its file system cannot {what} ({cause}), which mibf needs to {why}. "
                        "Choose a workspace on another disk or in an object store, or mount this one with that ability."
                    )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    _checked.add(workspace)


def _replaces(folder: Path) -> bool:
    old, new = folder / "old", folder / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    os.replace(new, old)
    return old.read_bytes() == b"new" and not new.exists()


def _moves_folders(folder: Path) -> bool:
    (folder / "from" / "below").mkdir(parents=True)
    os.replace(folder / "from", folder / "to")
    return (folder / "to" / "below").is_dir()


def _creates_exclusively(folder: Path) -> bool:
    path = str(folder / "claimed")
    if not storage.create_bytes(path, b"first"):
        return False
    return not storage.create_bytes(path, b"second") and Path(path).read_bytes() == b"first"


def _locks(folder: Path) -> bool:
    if not _HAS_LOCKS:
        return True
    lock = os.open(folder / "locked", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)
    return True


#: What is probed, what it is needed for, and the probe, which returns whether it worked or raises OSError.
_PROBES: tuple[tuple[str, str, Callable[[Path], bool]], ...] = (
    ("replace a file by renaming another", "write files completely or not at all", _replaces),
    ("rename a folder", "replace a patch store by a new one", _moves_folders),
    ("create a file only if it does not exist", "keep two runs apart", _creates_exclusively),
    ("lock a file", "keep two runs apart", _locks),
)
