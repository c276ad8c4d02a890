"""Numbers of samples per window and class of many stores: compressed, store by store, as few of 10^8 windows are needed.

Ten thousand scenes have 60 million windows. As arrays of windows by classes these would take several GB in every worker;
compressed they take two or three bytes a window. What concerns all windows goes through them store by store, and what
concerns one window unpacks its store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

from pipeline.grid import Window

_CODEC = Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE)
#: Stores that a table holds unpacked.
UNPACKED = 32


@dataclass(frozen=True)
class StoreSamples:
    """The windows of one store that hold samples of a subset.

    `numbers` (n,) are those of the windows in the grid of `side`-sided windows, row by row; `samples` (n, classes).
    """

    shape_yx: tuple[int, int]  #: of the store's grid, in pixels
    side: int
    numbers: NDArray[np.int64]
    samples: NDArray[np.int64]

    @classmethod
    def of_grid(cls, shape_yx: tuple[int, int], side: int, counts: NDArray[np.integer]) -> StoreSamples:
        """From the counts (classes, rows, columns) of all windows."""
        every = counts.reshape(len(counts), math.prod(counts.shape[1:]))
        numbers = np.flatnonzero(every.any(axis=0))
        return cls(shape_yx, side, numbers, every[:, numbers].T.astype(np.int64))

    @classmethod
    def of_windows(
        cls, shape_yx: tuple[int, int], side: int, found: Sequence[tuple[Window, NDArray[np.int64]]], *, classes: int
    ) -> StoreSamples:
        """From windows and their counts (classes,)."""
        across = -(-shape_yx[1] // side)
        numbers = np.array([window.y // side * across + window.x // side for window, _ in found], np.int64)
        samples = np.array([counts for _, counts in found], np.int64).reshape(len(found), classes)
        return cls(shape_yx, side, numbers, samples)

    def window(self, position: int) -> Window:
        """A window, by its position among those with samples."""
        (rows, columns), side = self.shape_yx, self.side
        row, column = divmod(int(self.numbers[position]), -(-columns // side))
        return Window(row * side, column * side, min(side, rows - row * side), min(side, columns - column * side))

    def sides(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Heights and widths of the windows, (n,) each."""
        (rows, columns), side = self.shape_yx, self.side
        row, column = np.divmod(self.numbers, -(-columns // side))
        return np.minimum(side, rows - row * side), np.minimum(side, columns - column * side)

    def pack(self) -> bytes:
        """Compress to bytes."""
        steps = np.diff(self.numbers, prepend=0).astype(np.uint32)
        head = np.array([*self.shape_yx, self.side, *self.samples.shape, 0], np.int64)
        parts = [_CODEC.encode(steps), _CODEC.encode(self.samples.T.astype(np.uint32).copy())] if len(steps) else [b"", b""]
        head[-1] = len(parts[0])
        return bytes(head.tobytes() + parts[0] + parts[1])

    @classmethod
    def unpack(cls, packed: bytes) -> StoreSamples:
        """The windows that `pack` compressed.

        Raises:
            ValueError: the bytes are not those of `pack`.
        """
        rows, columns, side, number, classes, length = np.frombuffer(packed[:48], np.int64).tolist()
        if not number:
            return cls((rows, columns), side, np.zeros(0, np.int64), np.zeros((0, classes), np.int64))
        steps = np.frombuffer(_CODEC.decode(packed[48 : 48 + length]), np.uint32)
        samples = np.frombuffer(_CODEC.decode(packed[48 + length :]), np.uint32).reshape(classes, number)
        return cls((rows, columns), side, steps.cumsum(dtype=np.int64), samples.T.astype(np.int64))


class SampleTable:
    """The windows with samples of a subset of some stores, numbered through all of them."""

    def __init__(self, packed: Iterable[bytes], *, classes: int) -> None:
        self._packed = tuple(packed)
        numbers, self.counts = [], np.zeros(classes, np.int64)  #: samples per class of all windows
        self._fits = True  # whether the samples of a window fit 16 bits
        for part in self.parts():
            numbers.append(len(part.numbers))
            self.counts = self.counts + part.samples.sum(axis=0)
            self._fits = self._fits and part.side**2 < 2**16
        self._ends = np.cumsum(np.array(numbers, np.int64))
        self._part = lru_cache(UNPACKED)(lambda store: StoreSamples.unpack(self._packed[store]))

    @classmethod
    def of(cls, samples: NDArray[np.int64]) -> SampleTable:
        """From the samples (window, class) of the windows of one column."""
        part = StoreSamples((len(samples), 1), 1, np.arange(len(samples)), samples)
        return cls([part.pack()], classes=samples.shape[1])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def totals(self) -> NDArray[np.unsignedinteger]:
        """Number of samples of each window."""
        dtype: type[np.unsignedinteger] = np.uint16 if self._fits else np.uint32
        found: NDArray[np.unsignedinteger] = np.empty(len(self), dtype)
        begin = 0
        for part in self.parts():
            found[begin : begin + len(part.numbers)] = part.samples.sum(axis=1)
            begin += len(part.numbers)
        return found

    def parts(self) -> Iterator[StoreSamples]:
        """The windows of each store."""
        return map(StoreSamples.unpack, self._packed)

    def place(self, index: int) -> tuple[int, Window]:
        """The position of a window's store, and the window."""
        store, position = self._find(index)
        return store, self._part(store).window(position)

    def samples(self, index: int) -> NDArray[np.int64]:
        """Number of samples per class of a window (classes,)."""
        store, position = self._find(index)
        return np.asarray(self._part(store).samples[position])

    def padded_pixels(self, margin: int) -> int:
        """Number of pixels of all windows with `margin` more along each axis."""
        found = (part.sides() for part in self.parts())
        return sum(int(((heights + margin) * (widths + margin)).sum()) for heights, widths in found)

    def _find(self, index: int) -> tuple[int, int]:
        store = int(np.searchsorted(self._ends, index, side="right"))
        return store, index - (int(self._ends[store - 1]) if store else 0)
