"""Open Zarr groups at any URL, with checksums when writing and without silent gaps when reading.

Importing this module replaces the codec that unpickles, in this process, so every module that reads Zarr imports it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
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
#: Chunks as they are stored, by the key of their shard and their position in it, row by row; None for one that is not
#: stored, because it holds the fill value only.
EncodedChunks = dict[tuple[str, int], Buffer | None]


class StrictStore(WrapperStore[Store]):
    """A Zarr store whose shards were all written: an absent shard is lost data, not an empty shard.

    Zarr reads the chunks of a shard with one request each, one after the other; `encoded_chunks` reads them together, with
    few requests at the same time. Shard indexes are read once.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.identity = object()  #: of this opening of the store, for keys of what was read
        self._lock = Lock()
        self._indexes: OrderedDict[str, NDArray[np.uint64]] = OrderedDict()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object.

        Raises:
            MissingShardError: the object is a shard, and does not exist.
        """
        found = await super().get(key, prototype, byte_range)
        if found is None and _is_pixel_key(key):
            raise MissingShardError(f"shard {key} is missing")
        return found

    def encoded_chunks(self, chunks: Mapping[str, Sequence[int]], *, count: int) -> EncodedChunks:
        """Read chunks of shards.

        Args:
            chunks: by the key of a shard, positions of chunks in it.
            count: number of chunks in a shard.

        Raises:
            MissingShardError: a shard does not exist.
            RuntimeError: the index of a shard is damaged.
        """
        return sync(self._encoded_chunks(chunks, count))

    async def _encoded_chunks(self, chunks: Mapping[str, Sequence[int]], count: int) -> EncodedChunks:
        async def read(key: str, byte_range: ByteRequest | None = None) -> Buffer:
            found = await self.get(key, default_buffer_prototype(), byte_range)
            assert found is not None  # an absent shard raises
            return found

        async def of_shard(key: str, positions: Sequence[int]) -> EncodedChunks:
            size = 16 * count + 4  # of the index, which is at the end
            index = self._indexes.get(key)
            if len(positions) == count:
                spans = {0: await read(key)}
                index = self._keep_index(key, count, spans[0][-size:]) if index is None else index
            else:
                index = self._keep_index(key, count, await read(key, SuffixByteRequest(size))) if index is None else index
                ranges = _ranges(index, positions)
                contents = await asyncio.gather(*(read(key, RangeByteRequest(*each)) for each in ranges))
                spans = {start: content for (start, _), content in zip(ranges, contents, strict=True)}
            return {(key, position): _cut(spans, *map(int, index[position])) for position in positions}

        found: EncodedChunks = {}
        for part in await asyncio.gather(*(of_shard(*shard) for shard in chunks.items())):
            found |= part
        return found

    def _keep_index(self, key: str, count: int, content: Buffer) -> NDArray[np.uint64]:
        """Decode and keep the index of a shard, with its CRC32C: offset and size of every chunk (chunk, 2)."""
        index = np.frombuffer(CRC32C(location="end").decode(content.to_bytes()), "<u8").reshape(count, 2)
        with self._lock:
            self._indexes[key] = index
            if len(self._indexes) > KEPT_INDEXES:
                self._indexes.popitem(last=False)
        return index


def _cut(spans: Mapping[int, Buffer], start: int, size: int) -> Buffer | None:
    """Cut a chunk from what was read of its shard, by the position of the first byte; None if the chunk is not stored."""
    if start == _NO_CHUNK:
        return None
    first = max(begin for begin in spans if begin <= start)
    return spans[first][start - first : start - first + size]


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
