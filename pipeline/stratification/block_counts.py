"""Labelled pixels of blocks, without the many blocks and classes that have none: memory grows with the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BlockCounts:
    """Numbers of labelled pixels by block and class, of one grid of blocks or of several, one after the other.

    The three arrays have one entry for each class that a block has, (n,), in order of the blocks, then of the classes.
    """

    blocks: int  #: number of blocks, also of those without labels
    classes: int
    block: NDArray[np.uint32]
    position: NDArray[np.uint8]  #: of the class
    pixels: NDArray[np.uint32]

    @classmethod
    def of(cls, counts: NDArray[np.integer]) -> BlockCounts:
        """The counts (..., classes) of a grid of blocks."""
        flat = counts.reshape(-1, counts.shape[-1])
        block, position = np.nonzero(flat)
        found = flat[block, position].astype(np.uint32)
        return cls(len(flat), flat.shape[1], block.astype(np.uint32), position.astype(np.uint8), found)

    @classmethod
    def joined(cls, parts: Sequence[BlockCounts]) -> BlockCounts:
        """The counts of several grids, at least one, of the same classes."""
        ends = np.cumsum([part.blocks for part in parts])
        block = np.concatenate(
            [part.block + np.uint32(end - part.blocks) for part, end in zip(parts, ends.tolist(), strict=True)]
        )
        return cls(
            int(ends[-1]),
            parts[0].classes,
            block,
            np.concatenate([part.position for part in parts]),
            np.concatenate([part.pixels for part in parts]),
        )

    def totals(self) -> NDArray[np.int64]:
        """Number of pixels of each class (classes,)."""
        return np.bincount(self.position, weights=self.pixels, minlength=self.classes).astype(np.int64)

    def dense(self, block: NDArray[np.integer], *, begins: NDArray[np.int64]) -> NDArray[np.float64]:
        """The counts (n, classes) of some labelled blocks, numbered from 0; `begins` holds each one's first entry."""
        first, length = begins[block], np.diff(begins)[block] if len(block) > len(begins) // 4 else _lengths(begins, block)
        row = np.repeat(np.arange(len(block)), length)
        entry = np.repeat(first - (np.cumsum(length) - length), length) + np.arange(len(row))
        found = np.zeros((len(block), self.classes))
        found[row, self.position[entry]] = self.pixels[entry]
        return found


def _lengths(begins: NDArray[np.int64], block: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.asarray(begins[block.astype(np.int64) + 1] - begins[block])
