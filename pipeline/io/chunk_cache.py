"""Read windows of sharded arrays by whole chunks, and keep the chunks for windows nearby.

Windows with a halo overlap: a tile of 4 x 4 chunks needs parts of 6 x 6, a training window of one chunk needs parts of
nine. Chunks are decoded once while they stay among the last ones that were read, also if several threads need them at the
same time. Where windows are read in random order, the borders of chunks are kept longer: a window then needs one chunk,
and the borders of eight.

A chunk is decoded in the thread that reads it: as many cores decode as there are readers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import SupportsSyncCodec
from zarr.codecs import ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.metadata import ArrayV3Metadata

from pipeline.io.zarr_store import StrictStore

#: Bytes of decoded chunks and of their borders that a process keeps.
CHUNK_BYTES, BORDER_BYTES = 64 << 20, 256 << 20

#: Row and column of a chunk in its array, counted in chunks.
Place = tuple[int, int]
_Slices = tuple[slice, slice]


class _Bounded:
    """Values by key, least recently used first; the first ones are dropped beyond a number of bytes. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._values: OrderedDict[Hashable, tuple[NDArray[Any], ...]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> tuple[NDArray[Any], ...] | None:
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
            return found

    def put(self, key: Hashable, value: tuple[NDArray[Any], ...]) -> None:
        size = sum(array.nbytes for array in value)
        if size > self.limit:
            return
        with self._lock:
            self._drop(key)
            self._values[key] = value
            self.bytes += size
            while self.bytes > self.limit:
                self._drop(next(iter(self._values)))

    def _drop(self, key: Hashable) -> None:
        old = self._values.pop(key, ())
        self.bytes -= sum(array.nbytes for array in old)


class ChunkCache:
    """Decoded chunks, and borders of chunks, that were read last."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES, border_bytes: int = BORDER_BYTES) -> None:
        self._chunks, self._borders = _Bounded(chunk_bytes), _Bounded(border_bytes)
        self._pending: dict[Hashable, Future[NDArray[Any]]] = {}
        self._lock = Lock()

    def begin(self, key: Hashable) -> Future[NDArray[Any]] | None:
        """Begin to read a chunk, which `end` ends; if another thread is reading it, return the future of its chunk."""
        with self._lock:
            pending = self._pending.get(key)
            if pending is None:
                self._pending[key] = Future()
            return pending

    def end(self, key: Hashable, chunk: NDArray[Any] | None = None) -> None:
        """End what `begin` began in this thread; without a chunk it was not read, and those who wait read it."""
        with self._lock:
            pending = self._pending.pop(key)
        if chunk is None:
            pending.cancel()
        else:
            pending.set_result(chunk)

    @property
    def bytes(self) -> int:
        """Bytes of all chunks and borders."""
        return self._chunks.bytes + self._borders.bytes

    def part(self, key: Hashable, part: _Slices, shape: tuple[int, int]) -> NDArray[Any] | None:
        """Return a part of a chunk (..., rows, columns); None if it has to be read.

        Args:
            key: the chunk's key.
            part: rows and columns within the chunk.
            shape: rows and columns of the chunk.
        """
        chunk = self._chunks.get(key)
        if chunk is not None:
            return chunk[0][..., *part]
        borders = self._borders.get(key)
        if borders is None:
            return None
        (top, bottom, left, right), (rows, columns) = borders, part
        width = top.shape[-2]
        if rows.stop <= width:
            return top[..., *part]
        if rows.start >= shape[0] - width:
            first = shape[0] - width
            return bottom[..., rows.start - first : rows.stop - first, columns]
        if columns.stop <= width:
            return left[..., *part]
        if columns.start >= shape[1] - width:
            first = shape[1] - width
            return right[..., rows, columns.start - first : columns.stop - first]
        return None

    def add(self, key: Hashable, chunk: NDArray[Any], *, border: int) -> None:
        """Keep a chunk (..., rows, columns), which is not copied, and copies of its borders if they have a width."""
        self._chunks.put(key, (chunk,))
        if border and 2 * border < min(chunk.shape[-2:]):
            sides = (chunk[..., :border, :], chunk[..., -border:, :], chunk[..., :border], chunk[..., -border:])
            self._borders.put(key, tuple(side.copy() for side in sides))


@dataclass(frozen=True, eq=False)
class ChunkedArray:
    """An array (y, x) or (band, y, x) of a `StrictStore`, in shards, with all bands in a chunk."""

    array: zarr.Array[Any]
    cache: ChunkCache

    def read(self, rows: slice, columns: slice, *, border: int = 0) -> NDArray[Any]:
        """Read a window (..., rows, columns) within the array, from chunks that were kept where possible.

        Args:
            rows: with a start and an end.
            columns: likewise.
            border: keep the borders of chunks, this wide in the array's pixels.

        Raises:
            RuntimeError, ValueError: a shard or a chunk is missing or damaged.
        """
        above = self.array.shape[:-2]
        found = np.empty((*above, rows.stop - rows.start, columns.stop - columns.start), self.array.dtype)
        missing: list[Place] = []
        unread: set[Place] = set()
        pending: dict[Place, Future[NDArray[Any]]] = {}
        try:
            for place in self._places(rows, columns):
                part, to = self._overlap(place, rows, columns)
                kept = self.cache.part(self._key(place), part, self._shape(place))
                if kept is not None:
                    found[..., *to] = kept
                elif (other := self.cache.begin(self._key(place))) is not None:
                    pending[place] = other
                else:
                    missing.append(place)
                    unread.add(place)
            for place, chunk in self._chunks(missing):
                part, to = self._overlap(place, rows, columns)
                found[..., *to] = chunk[..., *part]
                self.cache.add(self._key(place), chunk, border=border)
                self.cache.end(self._key(place), chunk)
                unread.discard(place)
        finally:
            for place in unread:  # after an error
                self.cache.end(self._key(place))
        # Only now that no other thread waits for this one.
        for place, other in pending.items():
            part, to = self._overlap(place, rows, columns)
            found[..., *to] = self._awaited(place, other)[..., *part]
        return found

    def _awaited(self, place: Place, other: Future[NDArray[Any]]) -> NDArray[Any]:
        """The chunk that another thread reads; where that failed it is read here, which fails for the same reason."""
        try:
            return other.result()
        except CancelledError:
            ((_, chunk),) = self._chunks([place])
            return chunk

    @property
    def _sides(self) -> tuple[int, int]:
        return cast(tuple[int, int], self.array.chunks[-2:])

    def _key(self, place: Place) -> Hashable:
        return cast(StrictStore, self.array.store).identity, self.array.path, place

    def _places(self, rows: slice, columns: slice) -> Iterator[Place]:
        spans = [
            range(cut.start // side, -(-cut.stop // side)) for cut, side in zip((rows, columns), self._sides, strict=True)
        ]
        return ((y, x) for y in spans[0] for x in spans[1])

    def _shape(self, place: Place) -> tuple[int, int]:
        """Rows and columns of a chunk within the array."""
        sides = zip(place, self._sides, self.array.shape[-2:], strict=True)
        y, x = (min(side, size - at * side) for at, side, size in sides)
        return y, x

    def _overlap(self, place: Place, rows: slice, columns: slice) -> tuple[_Slices, _Slices]:
        """Where a chunk and a window overlap: in the chunk, and in the window."""
        in_chunk, in_window = [], []
        for at, side, cut in zip(place, self._sides, (rows, columns), strict=True):
            first, end = max(at * side, cut.start), min((at + 1) * side, cut.stop)
            in_chunk.append(slice(first - at * side, end - at * side))
            in_window.append(slice(first - cut.start, end - cut.start))
        return (in_chunk[0], in_chunk[1]), (in_window[0], in_window[1])

    def _chunks(self, places: Sequence[Place]) -> Iterator[tuple[Place, NDArray[Any]]]:
        """Read chunks of the array, with few requests, and decode them in this thread.

        Zarr hands every chunk to a thread and back to its only event loop, so that several readers are no faster than one.
        """
        if not places:
            return
        keys = {place: self._shard_key(place) for place in places}
        by_shard: dict[str, list[int]] = {}
        for key, position in keys.values():
            by_shard.setdefault(key, []).append(position)
        encoded = cast(StrictStore, self.array.store).encoded_chunks(by_shard, count=math.prod(self._chunks_across))
        decode = ChunkDecoder.of(self.array)
        for place in places:
            rows, columns = self._shape(place)
            yield place, decode(encoded.pop(keys[place]))[..., :rows, :columns]

    @property
    def _chunks_across(self) -> tuple[int, int]:
        """Chunks along each axis of a shard."""
        assert self.array.shards is not None
        y, x = (shard // chunk for shard, chunk in zip(self.array.shards[-2:], self._sides, strict=True))
        return y, x

    def _shard_key(self, place: Place) -> tuple[str, int]:
        """Key of the shard of a chunk, and the chunk's position in it, row by row."""
        (y, x), (high, wide) = place, self._chunks_across
        bands = "0/" * (self.array.ndim - 2)
        return f"{self.array.path}/c/{bands}{y // high}/{x // wide}", y % high * wide + x % wide


@dataclass(frozen=True)
class ChunkDecoder:
    """Decodes chunks of a sharded array in the calling thread."""

    codecs: tuple[SupportsSyncCodec, ...]  #: in the order of encoding
    spec: ArraySpec

    @classmethod
    def of(cls, array: zarr.Array[Any]) -> ChunkDecoder:
        """Return the decoder of an array's chunks."""
        (sharding,) = cast(ArrayV3Metadata, array.metadata).codecs
        assert isinstance(sharding, ShardingCodec)
        metadata = array.metadata
        spec = ArraySpec(sharding.chunk_shape, metadata.dtype, metadata.fill_value, array.config, default_buffer_prototype())
        codecs = sharding.codecs
        assert all(isinstance(codec, SupportsSyncCodec) for codec in codecs)
        return cls(cast("tuple[SupportsSyncCodec, ...]", codecs), spec)

    def __call__(self, content: Buffer | None) -> NDArray[Any]:
        """Decode a chunk; without content it holds the fill value.

        Raises:
            RuntimeError, ValueError: it is damaged.
        """
        if content is None:
            return np.full(self.spec.shape, self.spec.fill_value, self.spec.dtype.to_native_dtype())
        found: Any = content
        for codec in reversed(self.codecs):
            found = codec._decode_sync(found, self.spec)  # Zarr's protocol for this has only names with an underscore
        return np.asarray(found.as_numpy_array())
