"""Fingerprints of inputs and digests of values and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mibf.errors import InputError
from pipeline.io.storage import CHUNK_BYTES, as_input_errors, is_local, open_url, redact_url


def fingerprint(url: str) -> str:
    """A short hash that changes when the file at a URL does: of its size and its ETag or modification time.

    A local file's sidecar files count too (those of a shapefile or an ENVI raster); for a folder, such as a Zarr group, all
    files in it.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    filesystem, path = open_url(url)
    if url.startswith("http") and urlsplit(url).path.rstrip("/").endswith(".zarr"):  # HTTP has no folders
        described = [f"{path.rstrip('/')}/{name}" for name in ("zarr.json", ".zmetadata", ".zgroup")]
        path = next((name for name in described if filesystem.exists(name)), path)
    info = filesystem.info(path)
    parts = [_stamp(info)]
    if info["type"] == "directory":  # a Zarr group
        inside = filesystem.find(path, detail=True)
        parts += [[name.removeprefix(path), *_stamp(inside[name])] for name in sorted(inside)]
    if is_local(url):
        sidecars = [Path(path).with_suffix(suffix) for suffix in (".dbf", ".shx", ".prj", ".cpg", ".hdr", ".tfw", ".wld")]
        sidecars += [Path(path + suffix) for suffix in (".hdr", ".msk", ".aux.xml")]
        parts += [[p.stat().st_size, str(p.stat().st_mtime)] for p in sidecars if p.exists() and p != Path(path)]
    return digest(parts)


def _stamp(info: dict[str, Any]) -> list[Any]:
    stamp = next(
        (info[k] for k in ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "created") if info.get(k)), None
    )
    return [info.get("size"), str(stamp)]


def digest(value: Any) -> str:
    """A short hash of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def input_fingerprint(url: str) -> str:
    """The `fingerprint` of an input file.

    Raises:
        InputError: the file does not exist, or cannot be reached.
    """
    with as_input_errors(url):
        try:
            return fingerprint(url)
        except FileNotFoundError as error:
            raise InputError(
                f"{redact_url(url)}: no such file, or it cannot be reached; check the path in the configuration."
            ) from error


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
