"""Read windows of sharded arrays by whole chunks, and keep the chunks for windows nearby.

Windows with a halo overlap: a tile of 4 x 4 chunks needs parts of 6 x 6, a training window of one chunk needs parts of
nine. Chunks are decoded once while they stay among the last ones that were read. Where windows are read in random order,
the borders of chunks are kept longer: a window then needs one chunk, and the borders of eight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

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
        missing = []
        for place in self._places(rows, columns):
            part, to = self._overlap(place, rows, columns)
            kept = self.cache.part(self._key(place), part, self._shape(place))
            if kept is None:
                missing.append(place)
            else:
                found[..., *to] = kept
        for place, chunk in self._chunks(missing):
            part, to = self._overlap(place, rows, columns)
            found[..., *to] = chunk[..., *part]
            self.cache.add(self._key(place), chunk, border=border)
        return found

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
        """Read chunks of the array, with few requests; each is an array of its own."""
        if not places:
            return
        side_y, side_x = self._sides
        with cast(StrictStore, self.array.store).fetched(self._by_shard(places), count=self._shard_chunks):
            for ys, xs in rectangles(places):
                y, x = slice(ys.start * side_y, ys.stop * side_y), slice(xs.start * side_x, xs.stop * side_x)
                values = np.asarray(self.array[..., y, x])
                for place in ((row, column) for row in ys for column in xs):
                    top, left = (place[0] - ys.start) * side_y, (place[1] - xs.start) * side_x
                    yield place, values[..., top : top + side_y, left : left + side_x].copy()

    @property
    def _chunks_across(self) -> tuple[int, int]:
        """Chunks along each axis of a shard."""
        assert self.array.shards is not None
        y, x = (shard // chunk for shard, chunk in zip(self.array.shards[-2:], self._sides, strict=True))
        return y, x

    @property
    def _shard_chunks(self) -> int:
        return self._chunks_across[0] * self._chunks_across[1]

    def _by_shard(self, places: Iterable[Place]) -> dict[str, list[int]]:
        """Positions of chunks in their shards, by the shards' keys."""
        high, wide = self._chunks_across
        bands = "0/" * (self.array.ndim - 2)
        found: dict[str, list[int]] = {}
        for y, x in places:
            key = f"{self.array.path}/c/{bands}{y // high}/{x // wide}"
            found.setdefault(key, []).append(y % high * wide + x % wide)
        return found


def rectangles(places: Iterable[Place]) -> Iterator[tuple[range, range]]:
    """Divide places (row, column) into rectangles: runs of columns, over rows that have the same run.

    >>> [(list(rows), list(columns)) for rows, columns in rectangles([(0, 0), (0, 1), (1, 0), (1, 1), (1, 3)])]
    [([0, 1], [0, 1]), ([1], [3])]
    """
    rows: dict[int, list[int]] = {}
    for y, x in places:
        rows.setdefault(y, []).append(x)
    begun: dict[tuple[int, int], int] = {}  # run of columns -> first row
    before = None
    for y in sorted(rows):
        own = list(_runs(sorted(rows[y])))
        for run in [run for run in begun if run not in own or before != y - 1]:
            yield range(begun.pop(run), cast(int, before) + 1), range(*run)
        for run in own:
            begun.setdefault(run, y)
        before = y
    for run, first in begun.items():
        yield range(first, cast(int, before) + 1), range(*run)


def _runs(columns: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and end of each run of consecutive columns."""
    start = 0
    for position in range(1, len(columns) + 1):
        if position == len(columns) or columns[position] != columns[position - 1] + 1:
            yield columns[start], columns[position - 1] + 1
            start = position
