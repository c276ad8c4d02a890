"""Split pixels into train, validation and test: by spatial blocks with a buffer, from a raster, or at random.

Two patches of p pixels overlap if their centres are less than p apart along both axes. Patches of different subsets
therefore never overlap if blocks keep a buffer of at least p - 1 unused pixels between subsets.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.codes import CODES, UNLABELLED, Subset
from pipeline.grid import Window
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import header, open_raster, stamped
from pipeline.rasters.resample import Alignment, align, read_aligned
from pipeline.scenes.labels import OpenLabels
from pipeline.scenes.splitmix64 import GOLDEN, mix


class Split(Protocol):
    """A split of a scene, evaluated window by window."""

    def codes(self, window: Window, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The codes (height, width) of a window with these labels; 0 where a pixel is unused."""


@dataclass(frozen=True)
class NoSplit:
    """The split of a scene without labels: every pixel is unused."""

    def codes(self, window: Window, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """All codes are 0."""
        del window
        return np.zeros(labels.shape, np.uint8)


@dataclass(frozen=True)
class EntireScene:
    """A scene whose pixels are all of one subset."""

    subset: Subset

    def codes(self, window: Window, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The subset's code everywhere."""
        del window
        return np.full(labels.shape, CODES[self.subset], np.uint8)


@dataclass(frozen=True)
class Blocks:
    """Square blocks of one subset each; `table` (block row, block column) holds their subset codes."""

    table: NDArray[np.uint8]
    block: int
    margin: int  #: pixels dropped on each side of a border between subsets; half the buffer
    shape_yx: tuple[int, int]  #: of the grid

    def codes(self, window: Window, labels: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The codes (height, width) of a window: a block's code, or 0 within `margin` pixels of another subset's block.

        A pixel is kept if everything within `margin` of it belongs to its own subset. If two kept pixels of different
        subsets were within 2 * margin of each other, the pixel halfway between them would belong to both, so the gap
        between subsets is at least 2 * margin pixels.
        """
        del labels
        rows, row = self._reach(window.y, window.height, self.shape_yx[0])
        columns, column = self._reach(window.x, window.width, self.shape_yx[1])
        own = self.table[np.ix_(rows[1], columns[1])]
        kept = np.ones(own.shape, bool)
        for near in rows:
            for by in columns:
                kept &= self.table[np.ix_(near, by)] == own
        return np.where(kept, own, 0).astype(np.uint8)[row][:, column]

    def _reach(self, start: int, length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Group a window's pixels along one axis by the blocks at -margin, 0 and +margin from them.

        Returns:
            The blocks (3, groups), and each pixel's group. A window has few groups, and a decision for one of its pixels
            holds for the complete group.
        """
        centre = np.arange(start, start + length)
        blocks = np.stack([np.clip(centre + by, 0, size - 1) // self.block for by in (-self.margin, 0, self.margin)])
        begins = np.concatenate([[True], (np.diff(blocks) != 0).any(axis=0)])
        return blocks[:, begins], begins.cumsum() - 1


def check_blocks(*, block: int | None, buffer: int, patch: int) -> None:
    """Check that a buffer, and blocks of this size if there are any, can keep patches apart.

    Raises:
        InputError: the buffer is below patch - 1, or the blocks are too small to hold it.
    """
    if buffer < patch - 1:
        raise InputError(
            f"split.buffer is {buffer} pixels; patches of {patch} pixels overlap across it. Use {patch - 1} or more."
        )
    if block is not None and block <= 2 * buffer:
        raise InputError(f"split.block is {block} pixels, too small for a buffer of {buffer}; use more than {2 * buffer}.")


@dataclass(frozen=True)
class RasterSplit:
    """A split read from a raster: 1 train, 2 validation, 3 test; 0 or no data: unused."""

    file: RasterFile
    alignment: Alignment
    grid: GeoBox

    def codes(self, window: Window, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The codes (height, width) of a window.

        Raises:
            InputError: the file cannot be read, or contains another value.
        """
        del labels
        with open_raster(self.file) as raster:
            values, valid = read_aligned(raster, self.alignment, self.grid, window)
        found = np.where(valid, values[0], 0)
        unknown = sorted(set(np.unique(found).tolist()) - {0, *CODES.values()})
        if unknown:
            raise InputError(
                f"{self.file}: invalid values in a split raster: {', '.join(f'{v:g}' for v in unknown[:10])}; "
                "use 1 (train), 2 (validation), 3 (test) and 0 (unused)."
            )
        return found.astype(np.uint8)


def open_split_raster(url: str, grid: GeoBox) -> RasterSplit:
    """Open a split raster on the reference grid.

    Raises:
        InputError: the file is missing, unreadable or outside the grid.
    """
    file = stamped(RasterFile(url))
    head = header(file)
    if head.bands != 1:
        raise InputError(f"{file}: has {head.bands} bands; a split raster must have one band.")
    return RasterSplit(file, align(file, head, grid, resampling="nearest"), grid)


@dataclass(frozen=True)
class RandomSplit:
    """Randomly sampled pixels of each class, regardless of their neighbours: the protocol of many papers, which leaks.

    Every pixel has a key, a hash of its position. In each class the pixels with the lowest keys are for training, the next
    for validation and the rest for testing. So a window's split follows from its labels alone, and subset sizes are exact.
    """

    columns: int  #: of the grid
    seed: int
    scene: int  #: index of the scene in the split
    below: dict[int, tuple[int, int]]  #: per class id, the exclusive upper limits of training and validation keys

    def codes(self, window: Window, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The codes (height, width) of a window with these labels; 0 where there is no label."""
        keys = pixel_keys(window, columns=self.columns, seed=self.seed, scene=self.scene)
        codes = np.zeros(labels.shape, np.uint8)
        for class_id, (train, validation) in self.below.items():
            own = labels == class_id
            codes[own] = CODES["test"]
            codes[own & (keys < np.uint64(validation))] = CODES["validation"]
            codes[own & (keys < np.uint64(train))] = CODES["train"]
        return codes


def pixel_keys(window: Window, *, columns: int, seed: int, scene: int) -> NDArray[np.uint64]:
    """Keys (height, width), unique within a scene: hashes of the pixel indices."""
    rows = np.arange(window.y, window.y + window.height, dtype=np.uint64)[:, None]
    numbers = rows * np.uint64(columns) + np.arange(window.x, window.x + window.width, dtype=np.uint64)
    salt = np.random.SeedSequence([seed, scene]).generate_state(1, np.uint64)[0]
    return mix((numbers ^ salt) * GOLDEN)


def sample_count(wanted: float, available: int, *, at_most: float) -> int:
    """Number of a class's pixels in a subset of a random split; `wanted` is a share if below 1, else a number.

    At least 1 unless `wanted` is 0, but never more than the share `at_most`.

    >>> sample_count(0.1, 46, at_most=0.5), sample_count(50, 1428, at_most=0.5), sample_count(50, 20, at_most=0.5)
    (5, 50, 10)
    """
    if wanted == 0:
        return 0
    number = round(wanted * available) if wanted < 1 else round(wanted)
    return min(max(number, 1), int(at_most * available))


def dilate(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Where a set pixel is within `reach` rows and columns; the result is `reach` smaller on every side."""
    side = 2 * reach + 1
    sums = np.pad(mask.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))
    boxes = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return np.asarray(boxes > 0)


@dataclass(frozen=True)
class AddedLabels:
    """A scene's own labels, by which it was split, and labels that were added later, which only train.

    Added labels count on training ground, where they win over the scene's own, and later ones over earlier ones. On any
    other ground the scene's own remain: neither test pixels nor the assignment of blocks depend on what was added.
    """

    own: OpenLabels
    added: tuple[OpenLabels, ...]
    split: Split  #: of the scene's own labels

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how all labels were read."""
        return tuple(note for labels in (self.own, *self.added) for note in labels.notes)

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids (height, width) of a window, `UNLABELLED` where there is no label."""
        found = self.own.read(window)
        added = self.read_added(window)
        return np.where((added != UNLABELLED) & self.training(window, found), added, found)

    def training(self, window: Window, own: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Where (height, width) added labels count in a window with these own labels."""
        return training_ground(self.split, window, own)

    def read_added(self, window: Window) -> NDArray[np.uint8]:
        """Class ids (height, width) of the added labels alone, on any ground."""
        found = np.full((window.height, window.width), UNLABELLED, np.uint8)
        for labels in self.added:
            later = labels.read(window)
            found = np.where(later == UNLABELLED, found, later)
        return found

    def unknown(self, window: Window) -> dict[float, int]:
        """Labels of a window, own or added, that are neither a declared class nor ignored, with their pixel counts."""
        found: Counter[float] = Counter()
        for labels in (self.own, *self.added):
            found.update(labels.unknown(window))
        return dict(found)


@dataclass(frozen=True)
class AddedSplit:
    """The split of a scene with added labels: that of its own labels; pixels that only others label are for training."""

    labels: AddedLabels

    def codes(self, window: Window, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The codes (height, width) of a window with these labels, own and added."""
        own = self.labels.own.read(window)
        codes = self.labels.split.codes(window, own)
        new = (labels != UNLABELLED) & (own == UNLABELLED)
        return np.where(new & training_ground(self.labels.split, window, own), np.uint8(CODES["train"]), codes)


def training_ground(split: Split, window: Window, labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where (height, width) labels that are added to a scene's own would train.

    A split by pixels has no ground of its own where there are no labels: any pixel without a label may train.
    """
    found = split.codes(window, labels) == CODES["train"]
    return np.asarray(found | (labels == UNLABELLED) if isinstance(split, RandomSplit) else found)
