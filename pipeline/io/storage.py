"""Files and object stores behind one interface: every location is a URL, and a plain path is a local one.

Credentials come from the environment only; fsspec and its backends read them there.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from mibf.errors import InputError
from mibf.redaction import without_queries as without_queries
from mibf.redaction import without_user
from mibf.serialization import without_nan as without_nan
from pipeline.io.requests.s3_client import configure_s3
from pipeline.io.requests.signing import signed

#: Schemes of object stores, whose file systems in fsspec cache listings by default.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}
#: Bytes held in memory at a time when reading a file of any size.
CHUNK_BYTES = 64 * 1024 * 1024


def open_url(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL and the path on it.

    Raises:
        InputError: the URL's scheme is unknown, or needs a package that is not installed.
    """
    if is_local(url):
        return LocalFileSystem(), local_path(url)  # not by fsspec, which splits a path with `::` into several URLs
    if re.search(r"::(?!\w+://)", url):  # fsspec would take it for a chain of URLs
        raise InputError(f"{redact_url(url)}: contains `::`, which only local paths may; rename the folder or the file.")
    try:
        filesystem, path = fsspec.core.url_to_fs(encoded(url), **store_options(url))
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: {error}") from error
    return filesystem, path


def encoded(url: str) -> str:
    """Return the URL to request: signed, and over HTTP with blanks and `#` encoded, since a file has no fragment."""
    return signed(url.replace(" ", "%20").replace("#", "%23")) if url.startswith(("http://", "https://")) else url


def store_options(url: str) -> dict[str, bool]:
    """Options of fsspec for a URL: folders' listings, which others change, are not cached; who pays is as for GDAL."""
    options = {"use_listings_cache": False} if url.partition("://")[0] in _BUCKETS else {}
    if url.startswith(("s3://", "s3a://")):
        configure_s3()
        options |= {"requester_pays": True} if os.environ.get("AWS_REQUEST_PAYER") == "requester" else {}
    return options


def is_local(url: str) -> bool:
    """Whether a URL is a path on this machine."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """The absolute path of a local URL. `%20` and the like are decoded in a file: URL, unless a file has that very name."""
    path = re.sub("^file:(//(localhost(?=/))?)?", "", url)
    if path != url and "%" in path and not Path(path).exists():
        path = unquote(path)
    return os.path.abspath(Path(path).expanduser())


def join(url: str, *parts: str) -> str:
    """Join path components to a URL."""
    return posixpath.join(url.rstrip("/"), *parts)


def exists(url: str) -> bool:
    """Whether a file or folder exists."""
    filesystem, path = open_url(url)
    return bool(filesystem.exists(path))


def read_bytes(url: str) -> bytes:
    """Read a file.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    filesystem, path = open_url(url)
    return bytes(filesystem.cat_file(path))


def read_at_most(url: str, most: int) -> bytes:
    """Read a file of at most `most` bytes; stop at that bound, whatever size the server reports.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is larger.
    """
    filesystem, path = open_url(url)
    parts: list[bytes] = []
    left = most + 1
    with filesystem.open(path, "rb") as file:
        while left > 0 and (part := file.read(min(left, CHUNK_BYTES))):
            parts.append(part)
            left -= len(part)
    if left <= 0:
        raise InputError(f"{url}: is larger than {most // 2**20} MiB, the maximum for a file of its kind; check what it is.")
    return b"".join(parts)


def _make_folder(filesystem: AbstractFileSystem, path: str) -> None:
    """Create a folder on a local disk. Object stores have none, and s3fs would create a bucket for a mistyped name."""
    if isinstance(filesystem, LocalFileSystem):
        filesystem.makedirs(path, exist_ok=True)


def write_bytes(url: str, content: bytes) -> None:
    """Write a file atomically: on a local disk to a temporary name first, then renamed."""
    filesystem, path = open_url(url)
    _make_folder(filesystem, posixpath.dirname(path))
    if not is_local(url):
        filesystem.pipe_file(path, content)
        return
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    filesystem.pipe_file(temporary, content)
    os.replace(temporary, path)


def create_bytes(url: str, content: bytes) -> bool:
    """Create a file atomically, only if it does not exist: of concurrent calls, exactly one succeeds.

    This holds on S3, Google and Azure stores, which take the condition with the request, on disks, and in memory within
    one thread. Other file systems check first and then write, which is not safe under concurrency.

    Returns:
        Whether the file was written; False if it existed. A request that was retried because its response was lost finds
        the file that it wrote itself: to be certain, write a unique token and read it back.
    """
    filesystem, path = open_url(url)
    _make_folder(filesystem, posixpath.dirname(path))
    if is_local(url):
        return _link_new(path, content)
    for left in reversed(range(_CONFLICTS)):
        try:
            filesystem.pipe_file(path, content, mode="create")
            return True
        except FileExistsError:
            return False
        except OSError as error:
            refusal = _describe_refusal(error)
            if refusal in ("PreconditionFailed", "412"):
                return False
            if refusal != "ConditionalRequestConflict" or not left:
                raise
    raise AssertionError("the last attempt returns or raises")


#: Attempts at a conditional write when S3 reports a conflict with a concurrent request for the same object.
_CONFLICTS = 5


def _describe_refusal(error: OSError) -> str:
    """The error code of an S3 response; s3fs maps only AWS's own code for an unmet condition to an exception type."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def _link_new(path: str, content: bytes) -> bool:
    # Hidden, so that files left by a killed process are not read as part of the folder.
    temporary = Path(path).with_name(f".{posixpath.basename(path)}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave the name without the content
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        return _claim_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


#: Errors of file systems without hard links, such as exFAT, CIFS and gcsfuse.
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def _claim_new(temporary: Path, path: str) -> bool:
    """Move a file to a name that does not exist, without a hard link: between the two steps a reader sees it empty."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    os.replace(temporary, path)
    return True


def modified(url: str) -> datetime:
    """When a file was last written, by the clock of the store that holds it.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    filesystem, path = open_url(url)
    filesystem.invalidate_cache(posixpath.dirname(path))
    found: datetime = filesystem.modified(path)
    return found


def publish(local: str, url: str) -> None:
    """Move a finished local file to a URL; a reader sees the old file or the new one, never a partial one.

    The local file is removed.
    """
    filesystem, path = open_url(url)
    _make_folder(filesystem, posixpath.dirname(path))
    if is_local(url):
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        filesystem.put_file(local, temporary)
        os.replace(temporary, path)
    else:
        filesystem.put_file(local, path)
    os.remove(local)


def read_json(url: str) -> Any:
    """Read a JSON file; raises `FileNotFoundError` if it does not exist."""
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    """Write a value as an indented JSON file, atomically; NaN, which JSON does not have, becomes null."""
    write_bytes(url, (json.dumps(without_nan(value), indent=1, allow_nan=False) + "\n").encode())


def remove(url: str) -> None:
    """Remove a file, or a folder and its contents; do nothing if it does not exist."""
    filesystem, path = open_url(url)
    filesystem.invalidate_cache()  # another process may have written there since it was listed
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@contextmanager
def folder_in_use(url: str) -> Iterator[None]:
    """Create a folder for the duration of the block; afterwards remove the new folders that are empty."""
    filesystem, path = open_url(url)
    missing = []  # innermost first
    parent = path
    while is_local(url) and parent and not filesystem.exists(parent):
        missing.append(parent)
        parent = posixpath.dirname(parent)
    try:
        _make_folder(filesystem, path)
        yield
    finally:
        for folder in missing:
            if filesystem.exists(folder) and not filesystem.ls(folder):
                filesystem.rmdir(folder)


def move(url: str, target: str) -> None:
    """Replace one folder with another: a rename on a local disk; on an object store, one server-side copy per object.

    On an object store `zarr.json` is copied last: once it exists, the moved folder is complete.
    """
    filesystem, path = open_url(url)
    remove(target)
    target_path = open_url(target)[1]
    if is_local(url):
        os.replace(path, target_path)
        return
    filesystem.invalidate_cache()
    last = f"{path.rstrip('/')}/zarr.json"
    objects = [name for name in filesystem.find(path) if name != last]
    for group in (objects, [last]):
        filesystem.copy(group, [target_path.rstrip("/") + name[len(path.rstrip("/")) :] for name in group])
    filesystem.rm(path, recursive=True)


def move_file(url: str, target: str) -> None:
    """Replace one file with another on the same disk or object store; a reader sees one or the other, complete.

    A rename on a local disk; a server-side copy on an object store.
    """
    filesystem, path = open_url(url)
    target_path = open_url(target)[1]
    if is_local(url):
        os.replace(path, target_path)
        return
    filesystem.cp_file(path, target_path)
    filesystem.rm_file(path)


def check_writable(url: str) -> None:
    """Check that files can be written below a URL, and leave nothing behind.

    Raises:
        InputError: they cannot; the message says why.
    """
    filesystem, path = open_url(url)
    probe = join(path, f".mibf-{uuid.uuid4().hex}")
    try:
        with folder_in_use(url):
            filesystem.pipe_file(probe, b"")
            filesystem.rm_file(probe)
    except InputError:
        raise
    except Exception as error:  # each file system raises its own types
        raise InputError(
            f"workspace {url} cannot be written to ({error}); check its path and permissions, or choose another workspace."
        ) from error


def redact_url(url: str) -> str:
    """Redact a URL for display and storage: no user, no password and no query string, which may hold a signature."""
    return url if is_local(url) else without_user(url.partition("?")[0])


def absolute(url: str) -> str:
    """Make a location independent of the working directory."""
    return local_path(url) if is_local(url) else url


@contextmanager
def as_input_errors(url: str) -> Iterator[None]:
    """Re-raise any failure in the block as an `InputError` about a URL, with a message that a user can act on.

    Raises:
        InputError: the block failed.
    """
    try:
        yield
    except PermissionError as error:
        raise InputError(
            f"{redact_url(url)}: access denied ({without_queries(str(error))}); check the credentials in the environment."
        ) from error
    except InputError:
        raise
    except Exception as error:  # each file system raises its own types for an unresponsive server or missing credentials
        raise InputError(
            f"{redact_url(url)}: cannot be reached ({type(error).__name__}: {without_queries(str(error))})."
        ) from error


def answers(url: str) -> bool:
    """Whether the first byte of a file can be read."""
    try:
        filesystem, path = open_url(url)
        return len(filesystem.cat_file(path, start=0, end=1)) == 1
    except Exception:  # each file system raises its own types
        return False


def free_bytes(url: str) -> int | None:
    """Free bytes on the disk of a local URL; None for an object store, which does not report them."""
    if not is_local(url):
        return None
    folder = Path(local_path(url))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def names(url: str) -> list[str]:
    """Names of the files and folders in a folder; empty if the folder does not exist."""
    filesystem, path = open_url(url)
    filesystem.invalidate_cache(path)
    try:
        return [posixpath.basename(entry.rstrip("/")) for entry in filesystem.ls(path, detail=False)]
    except FileNotFoundError:
        return []


def folders(url: str) -> list[str]:
    """Sorted names of the subfolders of a folder; empty if the folder does not exist."""
    filesystem, path = open_url(url)
    filesystem.invalidate_cache(path)
    try:
        entries = filesystem.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = {posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory"}
    return sorted(found - {""})
