"""Which pixels train, validate and test: spatial blocks with a buffer, or a raster.

Two patches of p pixels overlap when their centres are less than p apart along both axes. Blocks
that keep `buffer >= p - 1` unused pixels between subsets therefore share no ground through patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.grid import Window, same_grid
from pipeline.labels import UNLABELLED
from pipeline.scene import check_placed, grid_of, open_lazily, open_raster, reading, warped

Subset = Literal["train", "validation", "test"]
SUBSETS: tuple[Subset, ...] = ("train", "validation", "test")
#: The code of each subset in a store's and a raster's split; 0 is unused.
CODES: dict[Subset, int] = {name: position + 1 for position, name in enumerate(SUBSETS)}


@dataclass(frozen=True)
class Blocks:
    """Squares of one subset each: a table (rows of blocks, columns of blocks) of subset codes."""

    table: NDArray[np.uint8]
    block: int
    margin: int  #: pixels dropped on each side of a border between subsets; the buffer is twice that

    def window(self, window: Window, shape_yx: tuple[int, int]) -> NDArray[np.uint8]:
        """The split of a window: a block's code, or 0 within `margin` pixels of another subset's block.

        A pixel is kept when all that lies within `margin` of it is of its own subset. Were two kept
        pixels of different subsets within 2 * margin of each other, the pixel half-way between them
        would have to be of both: so the gap between subsets is at least 2 * margin pixels.
        """
        rows = self._reach(window.y, window.height, shape_yx[0])
        columns = self._reach(window.x, window.width, shape_yx[1])
        own = self.table[np.ix_(rows[1], columns[1])]
        kept = np.ones(own.shape, bool)
        for row in rows:
            for column in columns:
                kept &= self.table[np.ix_(row, column)] == own
        return np.where(kept, own, 0).astype(np.uint8)

    def _reach(self, start: int, length: int, size: int) -> tuple[NDArray[np.int64], ...]:
        """The block of each pixel's near side, of itself and of its far side along one axis."""
        centre = np.arange(start, start + length)
        return tuple(np.clip(centre + shift, 0, size - 1) // self.block for shift in (-self.margin, 0, self.margin))

    def over(self, shape_yx: tuple[int, int], *, chunk: int) -> da.Array:
        """The split of a whole grid, (y, x) uint8, lazily."""

        def fill(block: NDArray[np.uint8], block_info: dict[int, Any]) -> NDArray[np.uint8]:
            (y, _), (x, _) = block_info[0]["array-location"]
            return self.window(Window(y, x, *block.shape), shape_yx)

        return da.zeros(shape_yx, chunks=(chunk, chunk), dtype=np.uint8).map_blocks(fill, dtype=np.uint8)


def check_blocks(*, block: int, buffer: int, patch: int) -> None:
    """See that blocks of this size and buffer can keep patches apart.

    Raises:
        InputError: the buffer is below patch - 1, or the blocks are too small to hold it.
    """
    if buffer < patch - 1:
        raise InputError(
            f"split.buffer is {buffer} pixels; patches of {patch} pixels overlap across it. Use {patch - 1} or more."
        )
    if block <= 2 * buffer:
        raise InputError(f"split.block is {block} pixels, too small for a buffer of {buffer}; use more than {2 * buffer}.")


def class_counts(labels: da.Array, *, block: int, ids: tuple[int, ...]) -> NDArray[np.int64]:
    """Labelled pixels of each class in each block: (rows of blocks, columns of blocks, classes)."""
    shape = (-(-labels.shape[0] // block), -(-labels.shape[1] // block), len(ids))
    position = np.full(256, -1, np.int64)
    position[list(ids)] = np.arange(len(ids))

    def count(part: NDArray[np.uint8], y: int, x: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = np.nonzero(part != UNLABELLED)
        cell = ((rows + y) // block * shape[1] + (columns + x) // block) * len(ids) + position[part[rows, columns]]
        cells, counts = np.unique(cell, return_counts=True)
        return cells, counts

    starts_y, starts_x = (np.cumsum([0, *sizes[:-1]]) for sizes in labels.chunks)
    parts = [
        dask.delayed(count)(part, int(y), int(x))
        for y, row in zip(starts_y, labels.to_delayed(), strict=True)
        for x, part in zip(starts_x, row, strict=True)
    ]
    total = np.zeros(int(np.prod(shape)), np.int64)
    with reading():
        for cells, counts in dask.compute(*parts):
            total[cells] += counts
    return total.reshape(shape)


def assign_blocks(counts: NDArray[np.int64], fractions: dict[Subset, float], *, seed: int) -> NDArray[np.uint8]:
    """Give each block, (..., classes) counts, to a subset so that every class meets the fractions as nearly as blocks allow.

    Iterative stratification (Sechidis et al. 2011), weighted by pixels: of the class with the fewest
    pixels left, the largest block goes to the subset that still wants that class most. Blocks without labels
    are given by the fractions at random: they keep the buffers whole.
    """
    generator = np.random.default_rng(seed)
    flat = counts.reshape(-1, counts.shape[-1]).astype(float)
    total = flat.sum(axis=0)
    share = np.array([fractions[name] for name in SUBSETS])
    wanted = share[:, None] * total  # (subsets, classes), pixels still wanted
    codes = generator.choice(len(SUBSETS), size=len(flat), p=share) + 1
    shuffled = generator.permutation(len(flat))  # breaks ties
    largest_first = [iter(shuffled[np.argsort(-flat[shuffled, c], kind="stable")]) for c in range(flat.shape[1])]
    waiting = flat.sum(axis=1) > 0
    left = total.copy()
    while waiting.any():
        rarest = int(np.where(left > 0.5, left, np.inf).argmin())
        block = int(next(b for b in largest_first[rarest] if waiting[b]))
        need = wanted[:, rarest] / np.maximum(share * total[rarest], 1e-9)
        best = np.nonzero(need >= need.max() - 1e-9)[0]
        subset = int(best[wanted[best].sum(axis=1).argmax()])
        codes[block] = subset + 1
        wanted[subset] -= flat[block]
        left -= flat[block]
        waiting[block] = False
    return codes.reshape(counts.shape[:-1]).astype(np.uint8)


def open_split_raster(url: str, grid: GeoBox, *, chunk: int) -> da.Array:
    """A split given as a file: 1 train, 2 validation, 3 test, 0 or nodata unused; (y, x) uint8 on the grid.

    Raises:
        InputError: the file is missing, unreadable or elsewhere, or holds another value.
    """
    with open_raster(url) as dataset:
        check_placed(url, dataset, grid)
        if grid.crs is None and same_grid(grid_of(dataset), grid):
            values = open_lazily(url, chunk)
        else:
            with warped(dataset, grid, resampling="nearest", nodata=None) as view:
                values = open_lazily(view, chunk)
    codes = values.isel(band=0).data
    codes = da.where(da.isfinite(codes), codes, 0)
    parts = [dask.delayed(np.unique)(part) for part in codes.to_delayed().ravel()]
    with reading():
        found = dask.compute(*parts)
    unknown = sorted(set(np.concatenate(found).tolist()) - {0.0, 1.0, 2.0, 3.0})
    if unknown:
        raise InputError(
            f"{url}: values {', '.join(f'{v:g}' for v in unknown[:10])} in a split raster; "
            "it may hold 1 (train), 2 (validation), 3 (test) and 0 (unused)."
        )
    return codes.astype(np.uint8)


def near_any(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Where a set pixel lies within `reach` rows and columns; the result is `reach` smaller on every side."""
    side = 2 * reach + 1
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return np.asarray(boxes > 0)
