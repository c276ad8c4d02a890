"""The files that belong to an input file: its sidecars, and the files that a virtual raster lists.

GDAL reads georeferencing, masks, overviews, statistics and attributes from them, so that a change of one of them is a
change of the input. A file that does not exist yet belongs too: it changes the input when it appears.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import fsspec.asyn
from fsspec import AbstractFileSystem

from pipeline.io import storage

#: A file as an fsspec file system describes it.
Info = dict[str, Any]
#: Sidecars of local files in fingerprints of earlier versions, in that order: in place of the extension, and after it.
FIRST_REPLACED = (".dbf", ".shx", ".prj", ".cpg", ".hdr", ".tfw", ".wld")
FIRST_APPENDED = (".hdr", ".msk", ".aux.xml")
#: Other endings in place of the extension: world files, RPC and other metadata, overviews, indices, parts of a raster.
_REPLACED = (
    *FIRST_REPLACED, ".tifw", ".tiffw", ".jgw", ".jpgw", ".jpegw", ".pgw", ".pngw", ".gfw", ".bpw", ".j2w", ".rpb", ".rpc",
    ".imd", ".pvl", ".xml", ".aux", ".aux.xml", ".tab", ".clr", ".stx", ".rrd", ".ige", ".rde", ".sdat", ".sgrd", ".mgrd",
    ".grd", ".gri", ".idx", ".ppg", ".pjg", ".lrc", ".til", ".ptf", ".qix", ".sbn", ".sbx", ".qpj", ".dbt", ".idm", ".mif",
    ".mid", ".dat", ".map", ".id", ".ind", "_rpc.txt", "_rpc.xml", "_metadata.txt", "_metadata.xml",
)  # fmt: skip  # a list of endings: one per line would fill a page
#: Other endings after the complete name.
_APPENDED = (
    *FIRST_APPENDED, ".ovr", ".msk.ovr", ".aux", ".xml", ".wld", ".rsc", ".sta", ".prj", ".cpg", ".vat.dbf", ".vat.cpg",
    "-wal", "-journal",
)  # fmt: skip  # a list of endings: one per line would fill a page
_LOGS = ("-wal", "-journal")
#: Endings that belong only to files with these extensions; elsewhere they end unrelated files of the same stem.
_ONLY_OF = {
    **dict.fromkeys((".dat", ".map", ".id", ".ind"), (".tab",)),
    ".tab": (".tif", ".tiff", ".jpg", ".jpeg", ".png", ".bmp", ".gif"),
    ".mid": (".mif",),
    ".mif": (".mid",),
    ".grd": (".gri",),
    ".gri": (".grd",),
    **dict.fromkeys((".idx", ".ppg", ".pjg", ".lrc", ".til", ".ptf"), (".mrf",)),
}
#: Sidecars that a web server, which lists no folders, is asked for, by extension: each one costs a request.
_ON_THE_WEB = {
    **dict.fromkeys((".tif", ".tiff"), (".aux.xml", ".msk", ".ovr", "*.tfw", "*_RPC.TXT", "*.RPB")),
    ".png": (".aux.xml", ".msk", ".ovr", "*.pgw", "*.wld"),
    **dict.fromkeys((".jpg", ".jpeg"), (".aux.xml", ".msk", ".ovr", "*.jgw", "*.wld")),
    ".jp2": (".aux.xml", ".msk", ".ovr", "*.j2w", "*.wld"),
    ".shp": ("*.dbf", "*.shx", "*.prj", "*.cpg"),
    **dict.fromkeys((".img", ".dat", ".bin", ".raw", ".bil", ".bsq", ".bip", ""), (".aux.xml", ".msk", ".hdr", "*.hdr")),
}
#: Elements of virtual rasters, virtual vector files and MRF files that name other files.
_NAMING = {"SourceFilename", "SourceDataset", "SrcDataSource", "DataFile", "IndexFile", "Source"}
_NAMING_SUFFIXES = (".vrt", ".mrf")
#: Maximum bytes of a virtual raster.
_MAX_BYTES = 256 * 1024 * 1024


class Listings:
    """Find sidecars, listing each folder once however many of its files are asked for. Short-lived, as listings age."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, list[str]]] = {}
        self._infos: dict[str, dict[str, Info]] = {}

    def local(self, path: str) -> dict[str, os.stat_result]:
        """The existing sidecars of a local file, by name, sorted."""
        folder, name = posixpath.split(path)
        try:
            if folder not in self._names:
                self._names[folder] = _by_lower_case(entry.name for entry in Path(folder).iterdir())
            there_by_name = self._names[folder]
        except PermissionError:  # files may be read but not listed
            there_by_name = _by_lower_case(_spellings(name))
        found: dict[str, os.stat_result] = {}
        for other in _existing(name, there_by_name):
            try:
                there = Path(folder, other).stat()
            except OSError:  # removed since, a broken link, or not listed
                continue
            if _counts(other, there.st_size):
                found[other] = there
        return found

    def remote(self, url: str) -> dict[str, Info]:
        """The existing sidecars of a file in an object store or on the web, by name, sorted.

        Raises:
            Exception: the server fails; each file system raises its own types.
        """
        filesystem, path = storage.open_url(url)
        if url.startswith("http"):
            return _asked_for(filesystem, url, path)
        folder, _, name = path.rpartition("/")
        if folder not in self._infos:
            try:
                listed = filesystem.ls(folder, detail=True)
            except (PermissionError, FileNotFoundError):  # objects may be read but not listed
                listed = []
            self._infos[folder] = {posixpath.basename(info["name"]): info for info in listed if info["type"] == "file"}
            self._names[folder] = _by_lower_case(self._infos[folder])
        found = {other: self._infos[folder][other] for other in _existing(name, self._names[folder])}
        return {other: info for other, info in found.items() if _counts(other, info.get("size"))}


def _by_lower_case(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.lower(), []).append(name)
    return found


def _possible(name: str) -> list[str]:
    """The names that sidecars of a file can have, in lower case."""
    lower = name.lower()
    stem, extension = posixpath.splitext(lower)
    names = [stem + ending for ending in _REPLACED if extension in _ONLY_OF.get(ending, (extension,))]
    names += [lower + ending for ending in _APPENDED]
    return [*names, f"rpc_{stem[4:]}.xml"] if stem.startswith("img_") else names  # of Pleiades and SPOT


def _existing(name: str, there: dict[str, list[str]]) -> list[str]:
    """The sidecars of a file among the names in its folder, sorted; their case does not matter."""
    return sorted({found for other in _possible(name) for found in there.get(other, ()) if found != name})


def _spellings(name: str) -> Iterator[str]:
    """The names of possible sidecars as GDAL tries them where it does not list a folder: endings in either case."""
    stem = posixpath.splitext(name)[0]
    for other in _possible(name):
        if other.startswith(stem.lower()):
            yield from (stem + other[len(stem) :], stem + other[len(stem) :].upper())


def _counts(name: str, size: int | None) -> bool:
    """Whether a sidecar can change what is read: SQLite leaves an empty log behind when a file is only read."""
    return bool(size) or not name.lower().endswith(_LOGS)


def _asked_for(filesystem: AbstractFileSystem, url: str, path: str) -> dict[str, Info]:
    """The sidecars that a web server has of those that are asked for; none of a signed URL, which is for one file."""
    parts = urlsplit(url)
    stem, extension = posixpath.splitext(path)
    if parts.query or not isinstance(filesystem, fsspec.asyn.AsyncFileSystem):
        return {}
    endings = _ON_THE_WEB.get(extension.lower(), ())
    wanted = [stem + ending[1:] if ending.startswith("*") else path + ending for ending in endings]

    async def ask() -> list[bool]:
        found: list[bool] = await asyncio.gather(*(filesystem._exists(name) for name in wanted))
        return found

    there = fsspec.asyn.sync(filesystem.loop, ask)
    found = [name for name, exists in zip(wanted, there, strict=True) if exists]
    return {posixpath.basename(name): filesystem.info(name) for name in sorted(found)}


def named_files(path: str) -> Iterator[str]:
    """The URLs of the files that a local virtual raster or MRF file names; none for another or an unreadable file."""
    if not path.lower().endswith(_NAMING_SUFFIXES):
        return
    try:
        root = ElementTree.fromstring(storage.read_at_most(path, _MAX_BYTES))
    except Exception:  # reported by the reader
        return
    folder = posixpath.dirname(path)
    for element in root.iter():
        text = (element.text or "").strip()
        if element.tag in _NAMING and text and not text.startswith("<"):
            yield _as_url(text, folder if element.get("relativeToVRT") == "1" or path.lower().endswith(".mrf") else None)


def _as_url(name: str, folder: str | None) -> str:
    """The URL of a file by the name that GDAL has for it, such as `NETCDF:"a.nc":b` or `/vsis3/bucket/a.tif`."""
    if (quoted := re.search('"([^"]+)"', name)) is not None:  # of a subdataset
        name = quoted[1]
    elif (directory := re.fullmatch(r"GTIFF_DIR:(?:off:)?\d+:(.+)", name)) is not None:
        name = directory[1]
    for prefix, scheme in (("/vsicurl/", ""), ("/vsis3/", "s3://"), ("/vsigs/", "gs://"), ("/vsiaz/", "az://")):
        if name.startswith(prefix):
            return scheme + name[len(prefix) :]
    return name if "://" in name or folder is None else posixpath.join(folder, name)
