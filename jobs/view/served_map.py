"""A published map as a server sees it: the page's files from this package, all others from the map's folder, by ranges."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mibf.errors import InputError
from pipeline.io import storage
from pipeline.io.retry import StorageUnavailableError, call_with_retry
from pipeline.publishing.page.page_file import TILES, TYPES, PageFile, static_files
from pipeline.publishing.published_map import ITEM
from pipeline.publishing.stac_item import InvalidItemError
from pipeline.publishing.stac_item_reader import read_item

#: Bytes that are read and sent at a time.
CHUNK_BYTES = 4 * 2**20
#: Seconds for which the size of a file in an object store is remembered, and that a request may wait for the store.
REMEMBERED_SECONDS, TIMEOUT_SECONDS = 5.0, 30.0
#: Media types of a map's own files, which those of pages lack.
_TYPES = TYPES | {"tif": "image/tiff; application=geotiff", "vrt": "application/xml", "xml": "application/xml"}


@dataclass(frozen=True)
class Content:
    """A file to send: its size, a tag that changes with it, and its bytes from `first` to before `end`."""

    size: int
    etag: str
    media_type: str
    read: Callable[[int, int], Iterator[bytes]]
    is_static: bool = False


class ServedMap:
    """The map published in a folder. Safe to use from several threads."""

    def __init__(self, name: str, folder: str, *, tiles: Callable[[], PageFile] | None = None) -> None:
        """Create; `tiles` lists the tiles as they are now, in place of the list that was published."""
        self.name, self.folder = name, folder
        self._tiles = tiles
        self._names: frozenset[str] = frozenset()
        self._sizes: dict[str, tuple[float, int, str]] = {}
        self._lock = threading.Lock()

    def open(self, name: str) -> Content | None:
        """Open a file of the map or its page; None if there is none of that name. No other file of the folder is served.

        Raises:
            StorageUnavailableError: the object store does not respond.
            OSError: the file may not be read.
        """
        static = next((file for file in static_files() if file.name == name), None)
        if static is not None:
            return _in_memory(static)
        if name == TILES and self._tiles is not None:
            try:
                return _in_memory(self._tiles())
            except InputError:  # the scene or the model cannot be read any more: serve what was published
                pass
        if name == ITEM:
            self._read_names()
        elif name not in self._names:
            self._read_names()
            if name not in self._names:
                return None
        return self._stored(name)

    def _read_names(self) -> None:
        try:
            item = read_item(self.folder)
        except InvalidItemError:
            item = None
        with self._lock:
            self._names = frozenset() if item is None else frozenset(file.name for file in item.files)

    def _stored(self, name: str) -> Content | None:
        url = storage.join(self.folder, name)
        try:
            size, etag = self._size(url)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Content(
            size, etag, _TYPES.get(name.rpartition(".")[2], "application/octet-stream"), lambda a, b: _read(url, a, b)
        )

    def _size(self, url: str) -> tuple[int, str]:
        """The size of a file, and a tag that changes when it is replaced."""
        if storage.is_local(url):
            found = Path(storage.local_path(url)).stat()
            return found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}"
        with self._lock:
            known = self._sizes.get(url)
        if known is None or time.monotonic() - known[0] > REMEMBERED_SECONDS:
            filesystem, path = storage.open_url(url)
            info = call_with_retry(url, lambda: filesystem.info(path), timeout=TIMEOUT_SECONDS)
            if info.get("size") is None:
                raise StorageUnavailableError(f"{storage.redact_url(url)}: the server does not state the size of the file")
            etag = str(info.get("ETag") or info.get("etag") or info.get("LastModified") or info["size"]).strip('"')
            known = time.monotonic(), int(info["size"]), etag
            with self._lock:
                self._sizes[url] = known
        return known[1], known[2]


def _in_memory(file: PageFile) -> Content:
    def read(first: int, end: int) -> Iterator[bytes]:
        yield file.content[first:end]

    return Content(len(file.content), file.sha256[:32], file.media_type, read, is_static=True)


def _read(url: str, first: int, end: int) -> Iterator[bytes]:
    if storage.is_local(url):
        with Path(storage.local_path(url)).open("rb") as file:
            file.seek(first)
            while first < end and (part := file.read(min(CHUNK_BYTES, end - first))):
                first += len(part)
                yield part
        return
    filesystem, path = storage.open_url(url)
    while first < end:
        stop = min(first + CHUNK_BYTES, end)
        part = call_with_retry(
            url,
            lambda first=first, stop=stop: filesystem.cat_file(path, start=first, end=stop),  # type: ignore[misc]  # bound now
            timeout=TIMEOUT_SECONDS,
        )
        if not part:
            raise StorageUnavailableError(f"{storage.redact_url(url)}: is shorter than it was")
        first += len(part)
        yield part
