"""Open Zarr groups at any URL, with checksums when writing and without silent gaps when reading.

Importing this module replaces the codec that unpickles, in this process, so every module that reads Zarr imports it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numcodecs
import numpy as np
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.zip import ZipFileSystem
from numcodecs.abc import Codec
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore, ZipStore

from pipeline.io.storage import NO_HARD_LINKS, encoded, is_local, local_path, open_url, store_options

#: Read, fill, or create (replacing what is there).
ZarrMode = Literal["r", "r+", "w"]


class _NoPickle(Codec):  # type: ignore[misc]  # numcodecs has no types
    """Replacement for the codec that unpickles what it reads."""

    codec_id = "pickle"

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ValueError("values are encoded as pickles, which can run arbitrary code; rewrite the array with another codec")

    def encode(self, buf: Any) -> Any:
        """Not supported."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Not supported."""
        raise NotImplementedError


numcodecs.register_codec(_NoPickle)


def zarr_location(url: str) -> str | Store:
    """Convert a URL to the form that zarr and xarray accept; for a ZIP file of a store, which is only read, its store.

    Never to a local path, which zarr would split where it has `::`.
    """
    if not url.split("?")[0].lower().endswith(".zip"):
        return _DiskStore(local_path(url)) if is_local(url) else encoded(url)
    if is_local(url):
        return ZipStore(local_path(url), mode="r")
    filesystem, path = open_url(url)
    return FsspecStore(
        AsyncFileSystemWrapper(ZipFileSystem(filesystem.open(path, "rb")), asynchronous=True), read_only=True, path=""
    )


def open_zarr(url: str, *, mode: ZarrMode = "r") -> zarr.Group:
    """Open a Zarr group at a URL: mode "r" to read, "r+" to fill, "w" to create, replacing what is there."""
    store = _DiskStore(local_path(url), read_only=mode == "r") if is_local(url) else url
    return zarr.open_group(store=store, mode=mode, storage_options=store_options(url) or None)


class _DiskStore(LocalStore):
    """A Zarr store on a disk, also where the file system has no hard links."""

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object if there is none. Without hard links, check first and then write: one process lays out a store."""
        try:
            await super().set_if_not_exists(key, value)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            if not await self.exists(key):
                await self.set(key, value)


class ChecksumStore(WrapperStore[Store]):
    """A Zarr store at a URL for writing whole shards; records the size and SHA-256 of each object written.

    Existing shards are never read: zarr would otherwise read each one, intact or damaged, to merge new pixels into it.
    """

    def __init__(self, store: Store, written: dict[str, tuple[int, str]] | None = None) -> None:
        super().__init__(store)
        self.written = {} if written is None else written

    def _with_store(self, store: Store) -> ChecksumStore:
        return ChecksumStore(store, self.written)

    @classmethod
    def at(cls, url: str) -> ChecksumStore:
        """Open the store at a URL."""
        return cls(_zarr_store(url))

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read a metadata object; a shard reads as absent."""
        return None if _is_pixel_key(key) else await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object and record its size and SHA-256."""
        content = value.as_buffer_like()
        # Hash outside the thread of zarr's event loop, which all writers share.
        hashed = asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        _, digest = await asyncio.gather(super().set(key, value), hashed)
        self.written[key] = (len(value), digest)


#: Chunks of a shard are read by one request if at most this many bytes lie between them. With larger gaps tiles take fewer
#: requests and more bytes: see docs/performance.md.
LARGEST_GAP = 256 << 10
#: Shard indexes that are kept, of about 1 KB each.
KEPT_INDEXES = 4096
#: In a shard index, the offset of a chunk that is not stored.
_NO_CHUNK = 2**64 - 1


@dataclass(frozen=True, eq=False)
class _Span:
    """Bytes [start, start + len(content)) of an object."""

    start: int
    content: Buffer
    is_complete: bool = False  #: all bytes of the object

    def part(self, byte_range: ByteRequest | None) -> Buffer | None:
        """Return the bytes of a request; None if they are not all here."""
        end = self.start + len(self.content)
        if isinstance(byte_range, RangeByteRequest) and self.start <= byte_range.start and byte_range.end <= end:
            return self.content[byte_range.start - self.start : byte_range.end - self.start]
        if self.is_complete and byte_range is None:
            return self.content
        if self.is_complete and isinstance(byte_range, SuffixByteRequest):
            return self.content[end - byte_range.suffix :]
        return None


class StrictStore(WrapperStore[Store]):
    """A Zarr store whose shards were all written: an absent shard is lost data, not an empty shard.

    Zarr reads the chunks of a shard with one request each, one after the other. Those given to `fetched` are read together
    instead, with few requests at the same time. Shard indexes are read once.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.identity = object()  #: of this opening of the store, for keys of what was read
        self._lock = Lock()
        self._indexes: OrderedDict[str, Buffer] = OrderedDict()
        self._fetched: dict[str, list[_Span]] = {}  # being read from, by any thread

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object.

        Raises:
            MissingShardError: the object is a shard, and does not exist.
        """
        for span in self._fetched.get(key, ()):
            part = span.part(byte_range)
            if part is not None:
                return part
        index = self._indexes.get(key)
        if index is not None and isinstance(byte_range, SuffixByteRequest) and byte_range.suffix == len(index):
            return index
        found = await super().get(key, prototype, byte_range)
        if found is None and _is_pixel_key(key):
            raise MissingShardError(f"shard {key} is missing")
        return found

    @contextmanager
    def fetched(self, chunks: Mapping[str, Sequence[int]], *, count: int) -> Iterator[None]:
        """Hold chunks of shards for the block, in which zarr reads them.

        Args:
            chunks: by the key of a shard, positions of chunks in it, row by row.
            count: number of chunks in a shard.

        Raises:
            MissingShardError: a shard does not exist.
            RuntimeError: the index of a shard is damaged.
        """
        spans = sync(self._fetch(chunks, count))
        with self._lock:
            for key, own in spans.items():
                self._fetched[key] = [*self._fetched.get(key, ()), *own]
        try:
            yield
        finally:
            with self._lock:
                for key, own in spans.items():
                    left = [span for span in self._fetched[key] if span not in own]
                    if left:
                        self._fetched[key] = left
                    else:
                        del self._fetched[key]

    async def _fetch(self, chunks: Mapping[str, Sequence[int]], count: int) -> dict[str, list[_Span]]:
        async def read(key: str, start: int, end: int | None) -> _Span:
            byte_range = None if end is None else RangeByteRequest(start, end)
            found = await self.get(key, default_buffer_prototype(), byte_range)
            assert found is not None  # an absent shard raises
            return _Span(start, found, is_complete=end is None)

        async def of_shard(key: str, positions: Sequence[int]) -> list[_Span]:
            if len(positions) == count:
                return [await read(key, 0, None)]
            ranges = _ranges(await self._index(key, count), positions)
            return list(await asyncio.gather(*(read(key, start, end) for start, end in ranges)))

        return dict(zip(chunks, await asyncio.gather(*(of_shard(*shard) for shard in chunks.items())), strict=True))

    async def _index(self, key: str, count: int) -> NDArray[np.uint64]:
        """Offset and size of every chunk of a shard (chunk, 2), from the index at its end, with its CRC32C."""
        found = self._indexes.get(key)
        if found is None:
            found = await self.get(key, default_buffer_prototype(), SuffixByteRequest(16 * count + 4))
            assert found is not None  # an absent shard raises
        values = CRC32C(location="end").decode(found.to_bytes())
        with self._lock:
            self._indexes[key] = found
            self._indexes.move_to_end(key)
            if len(self._indexes) > KEPT_INDEXES:
                self._indexes.popitem(last=False)
        return np.frombuffer(values, "<u8").reshape(count, 2)


def _ranges(index: NDArray[np.uint64], positions: Sequence[int]) -> list[tuple[int, int]]:
    """Merge the byte ranges of chunks: first and end of each range to read."""
    found: list[tuple[int, int]] = []
    for start, size in sorted((int(start), int(size)) for start, size in index[list(positions)]):
        if start == _NO_CHUNK:
            continue
        if found and start - found[-1][1] <= LARGEST_GAP:
            found[-1] = (found[-1][0], max(found[-1][1], start + size))
        else:
            found.append((start, start + size))
    return found


class MissingShardError(RuntimeError):
    """A shard of a complete store is missing."""


def _is_pixel_key(key: str) -> bool:
    """Whether an object of a Zarr store holds pixels rather than metadata."""
    return "/c/" in key and not key.endswith("zarr.json")


def _zarr_store(url: str) -> Store:
    if is_local(url):
        return _DiskStore(local_path(url))
    return FsspecStore.from_url(url, storage_options={"asynchronous": True, **store_options(url)})


class DescribedStore(WrapperStore[Store]):
    """A Zarr store whose metadata objects are known: nothing but shards is read from it."""

    def __init__(self, store: Store, metadata: Mapping[str, bytes]) -> None:
        super().__init__(store)
        self.metadata = metadata

    def _with_store(self, store: Store) -> DescribedStore:
        return DescribedStore(store, self.metadata)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object."""
        if _is_pixel_key(key):
            return await super().get(key, prototype, byte_range)
        found = self.metadata.get(key)
        return None if found is None else prototype.buffer.from_bytes(found)


def open_strict(url: str, metadata: Mapping[str, bytes] | None = None) -> zarr.Group:
    """Open a Zarr group whose shards must all exist, for reading; see `StrictStore`.

    `metadata` holds its metadata objects by key if they are known, so that none is read.
    """
    store = _zarr_store(url)
    if metadata is not None:
        store = DescribedStore(store, metadata)
    return zarr.open_group(store=StrictStore(store).with_read_only(True), mode="r", zarr_format=3)
