"""The one door to files and object stores: every location is a URL, a plain path being a local one.

Credentials come from the environment alone (fsspec and its back ends read them there).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import fsspec
import zarr
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from mibf.discreet import without_queries as without_queries
from mibf.discreet import without_user
from mibf.errors import InputError
from mibf.jsonable import without_nan as without_nan

#: To read, to fill, to lay down anew.
ZarrMode = Literal["r", "r+", "w"]
#: Bytes of a file that are in memory at a time where it may be of any size.
_PIECE = 64 * 1024 * 1024


def open_url(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path on it.

    Raises:
        InputError: the URL's scheme is unknown, or needs a package that is not installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: {error}") from error
    return filesystem, path


def is_local(url: str) -> bool:
    """Whether a URL is a path on this machine."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """The absolute path of a local URL."""
    return os.path.abspath(Path(url.removeprefix("file://")).expanduser())


def join(url: str, *parts: str) -> str:
    """A location below another."""
    return posixpath.join(url.rstrip("/"), *parts)


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = open_url(url)
    return bool(filesystem.exists(path))


def read_bytes(url: str) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: there is no such file.
    """
    filesystem, path = open_url(url)
    return bytes(filesystem.cat_file(path))


def read_at_most(url: str, most: int) -> bytes:
    """A file's content, which is not read beyond a bound, whatever its server says of its size.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is larger.
    """
    filesystem, path = open_url(url)
    parts: list[bytes] = []
    left = most + 1
    with filesystem.open(path, "rb") as file:
        while left > 0 and (part := file.read(min(left, _PIECE))):
            parts.append(part)
            left -= len(part)
    if left <= 0:
        raise InputError(f"{url}: is larger than {most // 2**20} MiB, which nothing of its kind is; look at what it is.")
    return b"".join(parts)


def _make_folder(filesystem: AbstractFileSystem, path: str) -> None:
    """Make a folder on a disk. Object stores have none: asked for one, s3fs would make a bucket of a mistyped name."""
    if isinstance(filesystem, LocalFileSystem):
        filesystem.makedirs(path, exist_ok=True)


def write_bytes(url: str, content: bytes) -> None:
    """Write a file whole or not at all: on a local disk under another name first, then renamed."""
    filesystem, path = open_url(url)
    _make_folder(filesystem, posixpath.dirname(path))
    if not is_local(url):
        filesystem.pipe_file(path, content)
        return
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    filesystem.pipe_file(temporary, content)
    os.replace(temporary, path)


def create_bytes(url: str, content: bytes) -> bool:
    """Write a file that is not there yet, whole or not at all: of many that try at once, one does.

    True at S3, Google's and Azure's stores, which take the condition with the request, on disks that have hard links, and
    in memory within one thread. Other file systems look first and write then, which is no guard.

    Returns:
        Whether it was written; false where there was a file. A request that was sent again, its answer being lost, finds
        what it wrote itself: who must know writes what nobody else would, and reads.
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
            refusal = _refusal_of(error)
            if refusal in ("PreconditionFailed", "412"):
                return False
            if refusal != "ConditionalRequestConflict" or not left:
                raise
    raise AssertionError("the last try returns or raises")


#: How often S3 is asked again where it could not tell, for another request to the same object, whether there is one.
_CONFLICTS = 5


def _refusal_of(error: OSError) -> str:
    """The code by which an S3 server refused a request; s3fs knows AWS's own refusal of a condition alone by its type."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def _link_new(path: str, content: bytes) -> bool:
    # Hidden: what a killed process leaves must not be read as a part of the folder.
    temporary = Path(path).with_name(f".{posixpath.basename(path)}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the content
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def modified(url: str) -> datetime:
    """When a file was last written, by the clock of the store that it lies in.

    Raises:
        FileNotFoundError: there is no such file.
    """
    filesystem, path = open_url(url)
    filesystem.invalidate_cache(posixpath.dirname(path))
    found: datetime = filesystem.modified(path)
    return found


def publish(local: str, url: str) -> None:
    """Put a finished local file at a URL; a reader sees the old one or the new one, never half.

    The local file is gone afterwards.
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
    """A JSON file's value; `FileNotFoundError` where there is none."""
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    """Write a value as an indented JSON file, whole or not at all; NaN, which JSON has not, becomes null."""
    write_bytes(url, (json.dumps(without_nan(value), indent=1, allow_nan=False) + "\n").encode())


def remove(url: str) -> None:
    """Remove a file or a folder with all that is in it; nothing happens where there is none."""
    filesystem, path = open_url(url)
    filesystem.invalidate_cache()  # others may have written there since it was listed
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@contextmanager
def folder_in_use(url: str) -> Iterator[None]:
    """Make a folder for as long as the block runs: what of it is empty afterwards, and was not there before, goes again."""
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
    """Put a folder in the place of another: at once on a local disk; on an object store object by object, on the server.

    There, what is moved is whole to a reader when it has its `zarr.json`, which comes last.
    """
    filesystem, path = open_url(url)
    remove(target)
    place = open_url(target)[1]
    if is_local(url):
        os.replace(path, place)
        return
    filesystem.invalidate_cache()
    last = f"{path.rstrip('/')}/zarr.json"
    objects = [name for name in filesystem.find(path) if name != last]
    for group in (objects, [last]):
        filesystem.copy(group, [place.rstrip("/") + name[len(path.rstrip("/")) :] for name in group])
    filesystem.rm(path, recursive=True)


def move_file(url: str, target: str) -> None:
    """Put a file in the place of another on the same disk or object store; a reader sees the one or the other, whole.

    At once on a local disk; on an object store by a copy on the server.
    """
    filesystem, path = open_url(url)
    place = open_url(target)[1]
    if is_local(url):
        os.replace(path, place)
        return
    filesystem.cp_file(path, place)
    filesystem.rm_file(path)


def check_writable(url: str) -> None:
    """See that something can be written below a URL, and leave nothing behind.

    Raises:
        InputError: it cannot; the message says why.
    """
    filesystem, path = open_url(url)
    probe = join(path, f".mibf-{uuid.uuid4().hex}")
    try:
        with folder_in_use(url):
            filesystem.pipe_file(probe, b"")
            filesystem.rm_file(probe)
    except InputError:
        raise
    except Exception as error:  # as for `stamp`
        raise InputError(
            f"workspace {url} cannot be written ({error}); check its path and permissions, or choose another workspace."
        ) from error


def fingerprint(url: str) -> str:
    """A short hash that changes when the file at a URL does: of its size and its ETag or time of change.

    Of a local file, those that belong to it by the same name count too: a shapefile's or an ENVI raster's parts; of a
    folder, which a Zarr group is, all files in it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    filesystem, path = open_url(url)
    if url.startswith("http") and urlsplit(url).path.rstrip("/").endswith(".zarr"):  # the web has no folders
        described = [f"{path.rstrip('/')}/{name}" for name in ("zarr.json", ".zmetadata", ".zgroup")]
        path = next((name for name in described if filesystem.exists(name)), path)
    info = filesystem.info(path)
    parts = [_stamp_of(info)]
    if info["type"] == "directory":  # a Zarr group
        inside = filesystem.find(path, detail=True)
        parts += [[name.removeprefix(path), *_stamp_of(inside[name])] for name in sorted(inside)]
    if is_local(url):
        beside = [Path(path).with_suffix(suffix) for suffix in (".dbf", ".shx", ".prj", ".cpg", ".hdr", ".tfw", ".wld")]
        beside += [Path(path + suffix) for suffix in (".hdr", ".msk", ".aux.xml")]
        parts += [[p.stat().st_size, str(p.stat().st_mtime)] for p in beside if p.exists() and p != Path(path)]
    return digest(parts)


def _stamp_of(info: dict[str, Any]) -> list[Any]:
    stamp = next(
        (info[k] for k in ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "created") if info.get(k)), None
    )
    return [info.get("size"), str(stamp)]


def digest(value: Any) -> str:
    """A short hash of a JSON value: equal for equal values, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def shown(url: str) -> str:
    """A URL as it may be shown and kept: without a user and password, and without what follows `?`, which may sign it."""
    return url if is_local(url) else without_user(url.partition("?")[0])


def absolute(url: str) -> str:
    """A location that means the same wherever a process stands."""
    return local_path(url) if is_local(url) else url


def stamp(url: str) -> str:
    """As `fingerprint`, of an input file.

    Raises:
        InputError: it is not there, or cannot be reached.
    """
    with reached(url):
        try:
            return fingerprint(url)
        except FileNotFoundError as error:
            raise InputError(
                f"{shown(url)}: no such file, or not to be reached; check the place in the configuration."
            ) from error


@contextmanager
def reached(url: str) -> Iterator[None]:
    """Work on a URL whose failures are told as ones that a person can mend.

    Raises:
        InputError: the work failed.
    """
    try:
        yield
    except PermissionError as error:
        raise InputError(
            f"{shown(url)}: access is refused ({without_queries(str(error))}); check the credentials in the environment."
        ) from error
    except InputError:
        raise
    except Exception as error:  # each file system has its own for a server that does not answer or knows no credentials
        raise InputError(
            f"{shown(url)}: cannot be reached ({type(error).__name__}: {without_queries(str(error))})."
        ) from error


def zarr_location(url: str) -> str:
    """A URL as zarr and xarray take it."""
    return local_path(url) if is_local(url) else url


def open_zarr(url: str, *, mode: ZarrMode = "r") -> zarr.Group:
    """A Zarr group at a URL: mode "r" to read, "r+" to fill, "w" to lay down anew."""
    return zarr.open_group(store=zarr_location(url), mode=mode)


#: How GDAL's own file systems begin, by the schemes of URLs.
GDAL_SCHEMES = {"s3": "/vsis3/", "gs": "/vsigs/", "gcs": "/vsigs/", "az": "/vsiaz/", "abfs": "/vsiaz/"}


def gdal_path(url: str) -> str:
    """A URL as GDAL takes it."""
    if is_local(url):
        return local_path(url)
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https"):
        return f"/vsicurl/{url}"
    return GDAL_SCHEMES[scheme] + rest if scheme in GDAL_SCHEMES else url


def set_gdal_up() -> None:
    """Have GDAL read as we want it, and from the S3 server that AWS_ENDPOINT_URL names, as fsspec does.

    GDAL takes settings from the environment, in every thread.
    """
    os.environ.setdefault("GDAL_CACHEMAX", "128")  # it would take 5 % of the memory for blocks that are read once
    os.environ.setdefault("GDAL_HTTP_MAX_RETRY", "4")
    os.environ.setdefault("GDAL_HTTP_RETRY_DELAY", "1")
    os.environ.setdefault("GDAL_DISABLE_READDIR_ON_OPEN", "TRUE")  # it would list the folder of each file it opens
    os.environ.setdefault("RAW_CHECK_FILE_SIZE", "YES")  # it would take what a file cut short lacks as zeros
    os.environ["GDAL_VRT_ENABLE_PYTHON"] = "NO"  # whatever was said before: a virtual raster's code would run as ours
    os.environ["GML_DOWNLOAD_SCHEMA"] = "NO"  # a file of labels does not send us to servers
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "AWS_S3_ENDPOINT" not in os.environ:
        scheme, _, host = endpoint.rpartition("://")
        os.environ["AWS_HTTPS"] = "NO" if scheme == "http" else "YES"
        os.environ["AWS_VIRTUAL_HOSTING"] = "FALSE"
        os.environ["AWS_S3_ENDPOINT"] = host.rstrip("/")


class Recorder(WrapperStore[Store]):
    """A Zarr store at a URL, to write whole shards to, that remembers the size and SHA-256 of each object written.

    Of shards it reads nothing: zarr would take up each one that is there, whole or damaged, to put new pixels into it.
    """

    def __init__(self, store: Store, written: dict[str, tuple[int, str]] | None = None) -> None:
        super().__init__(store)
        self.written = {} if written is None else written

    def _with_store(self, store: Store) -> Recorder:
        return Recorder(store, self.written)

    @classmethod
    def at(cls, url: str) -> Recorder:
        """One for the store at a URL."""
        return cls(_zarr_store(url))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object that describes others."""
        return None if _of_pixels(key) else await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        content = value.as_buffer_like()
        # Not in the thread of zarr's event loop, which all writers share.
        hashed = asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        _, digest = await asyncio.gather(super().set(key, value), hashed)
        self.written[key] = (len(value), digest)


class WholeStore(WrapperStore[Store]):
    """A Zarr store all of whose shards were written: one that is not there is not empty, it is lost."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object.

        Raises:
            MissingShardError: it is a shard, and not there.
        """
        found = await super().get(key, prototype, byte_range)
        if found is None and _of_pixels(key):
            raise MissingShardError(f"shard {key} is missing")
        return found


class MissingShardError(RuntimeError):
    """A shard of a store that was whole is not there."""


def _of_pixels(key: str) -> bool:
    """Whether an object of a Zarr store holds pixels, rather than describing what does."""
    return "/c/" in key and not key.endswith("zarr.json")


def _zarr_store(url: str) -> Store:
    if is_local(url):
        return LocalStore(local_path(url))
    return FsspecStore.from_url(url, storage_options={"asynchronous": True})


def open_whole(url: str) -> zarr.Group:
    """A Zarr group whose shards are all there, to read; see `WholeStore`."""
    return zarr.open_group(store=WholeStore(_zarr_store(url)).with_read_only(True), mode="r")


def free_bytes(url: str) -> int | None:
    """The room on the disk that a local URL is on; None for an object store, which does not tell."""
    if not is_local(url):
        return None
    folder = Path(local_path(url))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def sizes(url: str) -> dict[str, int]:
    """The bytes of every file below a folder, by its path from there."""
    filesystem, path = open_url(url)
    filesystem.invalidate_cache(path)
    found = filesystem.find(path, detail=True)
    start = len(path.rstrip("/")) + 1
    return {name[start:]: int(info["size"]) for name, info in found.items()}


def sha256(url: str) -> tuple[int, str]:
    """The size and SHA-256 of a file of any size: it is read piece by piece.

    Raises:
        FileNotFoundError: there is no such file.
    """
    filesystem, path = open_url(url)
    size, found = 0, hashlib.sha256()
    with filesystem.open(path, "rb", cache_type="none") as file:  # what is read once need not be kept
        while content := file.read(_PIECE):
            size += len(content)
            found.update(content)
    return size, found.hexdigest()


def names(url: str) -> list[str]:
    """The names of the files and folders in a folder; none where there is no folder."""
    filesystem, path = open_url(url)
    filesystem.invalidate_cache(path)
    try:
        return [posixpath.basename(entry.rstrip("/")) for entry in filesystem.ls(path, detail=False)]
    except FileNotFoundError:
        return []


def folders(url: str) -> list[str]:
    """The names of the folders in a folder, in order; none where there is no folder."""
    filesystem, path = open_url(url)
    filesystem.invalidate_cache(path)
    try:
        entries = filesystem.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = {posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory"}
    return sorted(found - {""})
