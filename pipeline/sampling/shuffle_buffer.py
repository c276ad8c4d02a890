"""Shuffle buffer: normalized windows in memory, and patches gathered from them: plain, augmented or without one source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mibf.training.batch import PatchTables, WindowPixels
from pipeline.store.template import CHUNK, StoredSource

#: Symmetries of the square: quarter turns counterclockwise, 0 to 3, then the same mirrored left to right.
SYMMETRIES = 8
#: Symmetries that each value of `augment` draws from. A mirror is named by the directions that it swaps, where the rows of
#: the grid run from north to south.
ALLOWED: dict[bool | str, tuple[int, ...]] = {
    False: (0,),
    True: tuple(range(SYMMETRIES)),
    "mirror_east_west": (0, 4),
    "mirror_northwest_southeast": (0, 5),
    "mirror_north_south": (0, 6),
    "mirror_northeast_southwest": (0, 7),
}
#: How a window is stored: whole with its halo, or as the patches of its samples only, where they have fewer pixels.
WHOLE, PATCHES = 0, 1
#: Instead of a source's position: no source is dropped.
NONE = -1
Allocator = Callable[[tuple[int, int]], NDArray[np.float32]]


@dataclass(frozen=True)
class PatchLayout:
    """How the pixels of several sources are laid out in memory, and where those of a patch are.

    The windows of a source follow each other in one array (pixels, bands), each as rows of `CHUNK` + patch - 1 reference
    pixels, or as the patches of its samples. Positions in the array are counted in the source's own pixels.
    """

    sources: tuple[StoredSource, ...]
    patch: int

    @property
    def side(self) -> int:
        """Side of a whole window with halo, in reference pixels."""
        return CHUNK + self.patch - 1

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one reference pixel over all sources."""
        return 4 * sum(source.bands * source.scale**2 for source in self.sources)

    def kind(self, samples: int) -> int:
        """How to store a window from which this many samples are drawn: the way that takes less memory."""
        return WHOLE if samples * self.patch**2 >= self.side**2 else PATCHES

    def pixels(self, samples: int) -> int:
        """Reference pixels that such a window takes."""
        return min(samples * self.patch**2, self.side**2)

    @cached_property
    def scales(self) -> tuple[int, ...]:
        """The scales that occur, in ascending order."""
        return tuple(sorted({source.scale for source in self.sources}))

    @cached_property
    def offsets(self) -> dict[int, NDArray[np.int64]]:
        """By scale: offsets of a patch's pixels from its first pixel (kind, symmetry, (patch * scale)^2).

        A rotated or mirrored patch is the same pixels in another order: it costs no more than a plain one.
        """
        return {scale: self._offsets(scale) for scale in self.scales}

    def tables(self, dropout: Dropout | None = None) -> PatchTables:
        """How patches lie in the pixels, for a device that gathers them; a form is kind * `SYMMETRIES` + symmetry."""
        offsets = {scale: values.reshape(2 * SYMMETRIES, -1) for scale, values in self.offsets.items()}
        scales = tuple(source.scale for source in self.sources)
        return PatchTables(self.patch, scales, offsets, () if dropout is None else dropout.filled)

    def _offsets(self, scale: int) -> NDArray[np.int64]:
        y, x = np.indices((self.patch * scale, self.patch * scale))
        plain = [y * stride * scale + x for stride in (self.side, self.patch)]
        return np.array(
            [
                [np.fliplr(turned).ravel() if mirrored else turned.ravel() for mirrored in (False, True) for turned in turns]
                for turns in ([np.rot90(table, quarter) for quarter in range(4)] for table in plain)
            ]
        )


@dataclass(frozen=True)
class Dropout:
    """Source dropout: with a given probability a draw loses one source, each equally likely, and shows it as missing data.

    Args:
        share: the probability.
        filled: for each source, the normalized values of a pixel without data (bands,).
    """

    share: float
    filled: tuple[NDArray[np.float32], ...]

    def lost(self, draws: int, chance: np.random.Generator) -> NDArray[np.int16]:
        """Position of the source that each draw loses, or `NONE` (draws,)."""
        loses = chance.random(draws) < self.share
        return np.where(loses, chance.integers(0, len(self.filled), draws, np.int16), np.int16(NONE))


class ShuffleBuffer:
    """Shuffle buffer: several windows in memory, and their draws in the order in which they are returned.

    Filled window by window with `add`, then ordered once with `arrange`.
    """

    def __init__(
        self,
        layout: PatchLayout,
        pixels: int,
        dropout: Dropout | None = None,
        *,
        allocate: Allocator = lambda shape: np.empty(shape, np.float32),
    ) -> None:
        """Allocate room for `pixels` reference pixels of every source, with a function that makes an array of a shape."""
        self.layout, self.dropout = layout, dropout
        self._values = tuple(allocate((pixels * s.scale**2, s.bands)) for s in layout.sources)
        self.pixels = WindowPixels(self._values)
        self._used = 0
        self._kinds: list[NDArray[np.uint8]] = []
        self._starts: list[dict[int, NDArray[np.int64]]] = []
        self._labels: list[NDArray[np.int64]] = []
        self._times: list[NDArray[np.int64]] = []

    def add(
        self,
        sources: Sequence[NDArray[np.float32]],
        *,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        labels: NDArray[np.int64],
        times: NDArray[np.int64],
    ) -> None:
        """Add a window.

        Args:
            sources: every source's normalized window with halo (bands, rows * scale, columns * scale).
            rows: rows of the samples that are drawn, in reference pixels of the window without halo.
            columns: likewise.
            labels: their class indices.
            times: how often each is drawn.
        """
        layout = self.layout
        kind = layout.kind(len(rows))
        starts = {scale: self._start(kind, rows, columns, scale) for scale in layout.scales}
        for source, values, stored in zip(layout.sources, sources, self._values, strict=True):
            s = source.scale
            room = stored[self._used * s**2 : (self._used + layout.pixels(len(rows))) * s**2]
            side = layout.side * s
            area = (room if kind == WHOLE else np.empty((side**2, source.bands), np.float32)).reshape(side, side, -1)
            area[: values.shape[1], : values.shape[2]] = values.transpose(1, 2, 0)
            if kind == PATCHES:
                first = (rows * side + columns)[:, None] * s
                wanted = (first + layout.offsets[s][WHOLE, 0]).ravel()
                np.take(area.reshape(side**2, -1), wanted, axis=0, out=room, mode="clip")
        self._used += layout.pixels(len(rows))
        self._kinds.append(np.full(len(rows), kind, np.uint8))
        self._starts.append(starts)
        self._labels.append(labels)
        self._times.append(times)

    def _start(self, kind: int, rows: NDArray[np.int64], columns: NDArray[np.int64], scale: int) -> NDArray[np.int64]:
        """Where each sample's patch starts in a source of this scale."""
        before = self._used * scale**2
        if kind == PATCHES:
            return before + np.arange(len(rows)) * (self.layout.patch * scale) ** 2
        return before + (rows * self.layout.side * scale + columns) * scale

    def arrange(
        self,
        shuffle: np.random.Generator | None = None,
        turn: np.random.Generator | None = None,
        lose: np.random.Generator | None = None,
        *,
        augment: bool | str = True,
    ) -> None:
        """Order the draws: shuffled, or as they were added.

        With `turn`, each draw gets a random symmetry of those that `augment` allows; with `lose` and source dropout, each
        loses a random source, or none.
        """
        draws = np.repeat(np.arange(sum(map(len, self._times))), np.concatenate(self._times))
        self.order = draws if shuffle is None else shuffle.permutation(draws)
        allowed = np.array(ALLOWED[augment], np.uint8)
        self.turns = (
            np.zeros(len(draws), np.uint8) if turn is None else allowed[turn.integers(0, len(allowed), len(draws), np.uint8)]
        )
        self.lost = None if self.dropout is None or lose is None else self.dropout.lost(len(draws), lose)
        self.kinds = np.concatenate(self._kinds)
        self.starts = {scale: np.concatenate([s[scale] for s in self._starts]) for scale in self.layout.scales}
        self.labels = np.concatenate(self._labels)

    def gather(self, begin: int, end: int, patches: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> None:
        """Copy the draws [begin, end) to patches (end - begin, (patch * scale)^2, bands) and labels (end - begin,)."""
        chosen, turns = self.order[begin:end], self.turns[begin:end]
        kinds = self.kinds[chosen]
        labels[:] = self.labels[chosen]
        where = {s: self.starts[s][chosen, None] + self.layout.offsets[s][kinds, turns] for s in self.layout.scales}
        for source, values, out in zip(self.layout.sources, self._values, patches, strict=True):
            # With mode="raise", take would write to a copy first; no index is out of bounds.
            np.take(values, where[source.scale], axis=0, out=out, mode="clip")
        if self.dropout is not None and self.lost is not None:
            for position, (out, filled) in enumerate(zip(patches, self.dropout.filled, strict=True)):
                out[self.lost[begin:end] == position] = filled

    def places(self, begin: int, end: int) -> NDArray[np.int64]:
        """Where the patches of the draws [begin, end) are, as in `mibf.training.batch.WindowBatch`."""
        chosen = self.order[begin:end]
        forms = self.kinds[chosen].astype(np.int64) * SYMMETRIES + self.turns[begin:end]
        lost = np.full(end - begin, NONE) if self.lost is None else self.lost[begin:end]
        return np.stack([self.labels[chosen], forms, lost, *(self.starts[s][chosen] for s in self.layout.scales)])
