"""Fingerprints of inputs and digests of values and files."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from mibf.errors import InputError
from pipeline.io.sidecars import FIRST_APPENDED, FIRST_REPLACED, Listings, named_files
from pipeline.io.storage import CHUNK_BYTES, as_input_errors, is_local, open_url, redact_url

#: What an HTTP server answers for a file that it does not have.
MISSING = (404, 410)


def fingerprint(url: str, listings: Listings | None = None) -> str:
    """A short hash that changes when the file at a URL does: of its size and its ETag or modification time.

    Its sidecar files count too, those that appear included, and the files that a local virtual raster lists; for a folder,
    such as a Zarr group, all files in it. `listings` are shared by calls for several files of a folder.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    filesystem, path = open_url(url)
    if url.startswith("http") and urlsplit(url).path.rstrip("/").endswith(".zarr"):  # HTTP has no folders
        described = [f"{path.rstrip('/')}/{name}" for name in ("zarr.json", ".zmetadata", ".zgroup")]
        path = next((name for name in described if filesystem.exists(name)), path)
    info = filesystem.info(path)
    parts: list[Any] = [_stamp(info)]
    if info["type"] == "directory":  # a Zarr group
        inside = filesystem.find(path, detail=True)
        parts += [[name.removeprefix(path), *_stamp(inside[name])] for name in sorted(inside)]
    elif is_local(url):
        parts += _local_sidecars(path, listings or Listings())
        parts += [[name, _named_fingerprint(name)] for name in sorted(set(named_files(path)))]
    else:
        there = (listings or Listings()).remote(url)
        parts += [[name, *_stamp(info)] for name, info in there.items()]
    return digest(parts)


def _local_sidecars(path: str, listings: Listings) -> list[list[Any]]:
    """Sizes and times of a local file's sidecars: those of earlier versions as they were written, then all others."""
    found = listings.local(path)
    name = posixpath.basename(path)
    stem = posixpath.splitext(name)[0]
    first = [stem + ending for ending in FIRST_REPLACED if stem + ending != name] + [name + e for e in FIRST_APPENDED]
    parts: list[list[Any]] = [_size_and_time(found.pop(other)) for other in dict.fromkeys(first) if other in found]
    return parts + [[other, *_size_and_time(there)] for other, there in found.items()]


def _size_and_time(there: os.stat_result) -> list[Any]:
    return [there.st_size, str(there.st_mtime)]


def _named_fingerprint(url: str) -> str | None:
    """The fingerprint of a file that a virtual raster lists; None if it cannot be found, which its reader reports."""
    try:
        return fingerprint(url)
    except (OSError, InputError, RecursionError):
        return None


def _stamp(info: dict[str, Any]) -> list[Any]:
    stamp = next(
        (info[k] for k in ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "created") if info.get(k)), None
    )
    return [info.get("size"), str(stamp)]


def digest(value: Any) -> str:
    """A short hash of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def input_fingerprint(url: str, listings: Listings | None = None) -> str:
    """The `fingerprint` of an input file.

    Raises:
        InputError: the file does not exist, or cannot be reached.
    """
    with as_input_errors(url):
        try:
            return fingerprint(url, listings)
        except FileNotFoundError as error:
            raise InputError(f"{redact_url(url)}: no such file, or it cannot be reached; check the path.") from error


def is_missing(url: str) -> bool:
    """Whether the place of a file answers that there is none; not if it cannot be reached, which its reader reports."""
    filesystem, path = open_url(url)
    try:
        filesystem.info(path)
    except FileNotFoundError as error:  # for HTTP, this is any error, with its cause
        cause = error.__cause__
        return cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in MISSING
    except Exception:  # each file system raises its own types
        return False
    return False


def input_fingerprints(urls: Iterable[str], listings: Listings) -> dict[str, str]:
    """The `input_fingerprint` of each input file; a folder that holds several of them is listed once."""
    return {url: input_fingerprint(url, listings) for url in urls}


def object_sizes(url: str) -> dict[str, int]:
    """Sizes in bytes of all files below a folder, by relative path."""
    filesystem, path = open_url(url)
    filesystem.invalidate_cache(path)
    found = filesystem.find(path, detail=True)
    start = len(path.rstrip("/")) + 1
    return {name[start:]: int(info["size"]) for name, info in found.items()}


def sha256(url: str) -> tuple[int, str]:
    """The size and SHA-256 of a file of any size, read in pieces.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    filesystem, path = open_url(url)
    size, found = 0, hashlib.sha256()
    with filesystem.open(path, "rb", cache_type="none") as file:  # read once: no cache needed
        while content := file.read(CHUNK_BYTES):
            size += len(content)
            found.update(content)
    return size, found.hexdigest()
