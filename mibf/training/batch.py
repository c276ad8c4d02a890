"""Batches of samples, and their way to the device. Torch and numpy.

A batch holds either the patches of its samples, cut on the CPU, or the places of their pixels in the windows that they lie
in, from which the patches are gathered on the device. A pixel is part of up to p * p patches: with windows it is copied to
the device once, and a sample costs a few integers instead of its patch.

To a GPU, batches are copied while earlier ones are computed (see `mibf.transfer`).

Legend for shapes: B samples, C bands and s scale of a source, p patch side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibf.transfer import DeviceCopies


class Batch(NamedTuple):
    """B samples: patches of every source, (B, C, p s, p s) float32 in [0, 1], and class positions (B,) int64."""

    sources: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PatchTables:
    """How patches lie in the pixels of windows: the same for all batches of a training.

    Args:
        patch: its side p.
        scales: of each source.
        offsets: by scale, those of a patch's pixels from its first one, (form, (p s) ** 2); a form is a way of storing a
            window with a symmetry of the square.
        filled: for each source, what a sample shows that loses it (C,); empty if no sample does.
    """

    patch: int
    scales: tuple[int, ...]
    offsets: dict[int, NDArray[np.int64]]
    filled: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True, eq=False)
class WindowPixels:
    """Pixels of windows, which many batches share: (pixels, C) float32 for every source."""

    values: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """B samples as the places of their patches' pixels.

    Args:
        tables: how patches lie in the pixels.
        parts: the pixels of the batch's samples, in order: each with the number of samples that lie in it.
        places: (3 + number of scales, B): class position; form, see `PatchTables.offsets`; position of the source that the
            sample loses, -1 for none; and the patch's first pixel in each scale, in ascending order of scales.
    """

    tables: PatchTables
    parts: tuple[tuple[WindowPixels, int], ...]
    places: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class positions (B,)."""
        labels: NDArray[np.int64] = self.places[0]
        return labels


class PlacedBatch(Protocol):
    """A batch on the device that computes it."""

    @property
    def labels(self) -> Tensor:
        """Class positions (B,), int64."""

    def patches(self, begin: int, end: int) -> list[Tensor]:
        """Return the patches of the samples [begin, end) of every source: (end - begin, C, p s, p s), channels last."""


@dataclass(frozen=True)
class _Patches:
    """Patches that were cut on the CPU."""

    sources: tuple[Tensor, ...]
    labels: Tensor

    def patches(self, begin: int, end: int) -> list[Tensor]:
        """See `PlacedBatch.patches`."""
        return [x[begin:end] for x in self.sources]


@dataclass(frozen=True)
class _Windows:
    """Pixels of windows on the device, and the places of patches in them."""

    tables: _DeviceTables
    parts: tuple[tuple[tuple[Tensor, ...], int], ...]
    places: Tensor

    @property
    def labels(self) -> Tensor:
        """See `PlacedBatch.labels`."""
        return self.places[0]

    def patches(self, begin: int, end: int) -> list[Tensor]:
        """See `PlacedBatch.patches`."""
        tables = self.tables
        _, forms, lost, *starts = self.places[:, begin:end]
        wanted = {
            scale: (offsets[forms] + start[:, None]).flatten()
            for (scale, offsets), start in zip(tables.offsets.items(), starts, strict=True)
        }
        found = []
        for source, scale in enumerate(tables.scales):
            side = tables.patch * scale
            pixels = self._gather(source, wanted[scale], side**2, begin, end)  # (samples * side ** 2, C)
            patches = pixels.view(end - begin, side, side, -1)
            if tables.filled:
                patches = torch.where((lost == source)[:, None, None, None], tables.filled[source], patches)
            found.append(patches.permute(0, 3, 1, 2))
        return found

    def _gather(self, source: int, wanted: Tensor, area: int, begin: int, end: int) -> Tensor:
        """Gather the pixels of the patches of `area` pixels of the samples [begin, end), part by part."""
        gathered, first = [], 0
        for values, count in self.parts:
            own = slice(max(first, begin), min(first + count, end))
            if own.start < own.stop:
                within = wanted[(own.start - begin) * area : (own.stop - begin) * area]
                gathered.append(values[source].index_select(0, within))
            first += count
        return gathered[0] if len(gathered) == 1 else torch.cat(gathered)


@dataclass(frozen=True)
class _DeviceTables:
    """`PatchTables` on a device."""

    patch: int
    scales: tuple[int, ...]
    offsets: dict[int, Tensor]
    filled: tuple[Tensor, ...]


class BatchPlacer:
    """Puts batches on a device. It keeps what batches share: the tables, and the pixels of the windows in use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = DeviceCopies(device)
        self._tables: tuple[PatchTables, _DeviceTables] | None = None
        self._pixels: list[tuple[WindowPixels, tuple[Tensor, ...]]] = []

    def timed(self, batches: Iterable[Batch | WindowBatch]) -> Iterator[tuple[PlacedBatch, float]]:
        """Yield batches on the device, each with the seconds spent waiting for it."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                return
            waited = time.perf_counter() - start
            placed = self.place(batch)
            del batch  # otherwise its patches stay in memory while they are computed on a GPU
            yield placed, waited

    def place(self, batch: Batch | WindowBatch) -> PlacedBatch:
        """Put a batch on the device; on a CPU it shares memory with the original."""
        with self._copies.made() as copying:
            placed = self._placed(batch, copying.copy)
        copying.wait()
        return placed

    def _placed(self, batch: Batch | WindowBatch, copy: Callable[[NDArray[Any]], Tensor]) -> PlacedBatch:
        if isinstance(batch, Batch):
            return _Patches(tuple(map(copy, batch.sources)), copy(batch.labels))
        if self._tables is None or self._tables[0] is not batch.tables:
            tables = batch.tables
            offsets = {scale: copy(values) for scale, values in sorted(tables.offsets.items())}
            filled = tuple(map(copy, tables.filled))
            self._tables = tables, _DeviceTables(tables.patch, tables.scales, offsets, filled)
        known = {id(pixels): placed for pixels, placed in self._pixels}
        self._pixels = [(pixels, known.get(id(pixels)) or tuple(map(copy, pixels.values))) for pixels, _ in batch.parts]
        parts = zip((placed for _, placed in self._pixels), (count for _, count in batch.parts), strict=True)
        return _Windows(self._tables[1], tuple(parts), copy(batch.places))
