"""Choose the block size of a spatial split from the labels of a scene."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from jobs.config.split import BlocksSection, FractionsSection
from jobs.init.class_table import DetectedLabels
from jobs.runtime.progress import progress_bar
from mibf.errors import InputError
from pipeline.codes import SUBSETS
from pipeline.parallel.executor import Executor
from pipeline.scenes.label_counts import LabelGrid, count_labels, count_subsets
from pipeline.scenes.labels import open_labels
from pipeline.scenes.split import Blocks
from pipeline.stratification.assign import assign_blocks

#: Sides of blocks in pixels, in the order in which they are tried: large blocks lose a smaller share to the buffer.
SIDES = (96, 64, 48, 32, 24, 20, 16, 12, 10)
#: Preferred and acceptable minimum number of labelled blocks of a split.
ENOUGH_BLOCKS, MIN_BLOCKS = 30, 12
#: Sides to try if the grid has more than `LARGE` pixels: each side costs two passes over the labels.
LARGE_GRID_SIDES = SIDES[:2]
LARGE = 20_000_000
#: Patch of scenes whose shorter side is below `SMALL` pixels; other scenes keep the default.
SMALL = 100
SMALL_PATCH, PATCH = 5, 7


@dataclass(frozen=True)
class SplitChoice:
    """A block size, and the number of pixels of each class and subset that it gives."""

    block: int
    labelled_blocks: int
    pixels: NDArray[np.int64]  #: labelled pixels (class)
    samples: NDArray[np.int64]  #: labelled pixels that remain outside the buffer (subset, class)

    @property
    def untrained(self) -> list[int]:
        """Positions of the classes without training pixels."""
        return [int(i) for i in np.nonzero(self.samples[0] == 0)[0]]

    @property
    def has_all_subsets(self) -> bool:
        """Whether every subset has samples."""
        return bool((self.samples.sum(axis=1) > 0).all())

    @property
    def is_good(self) -> bool:
        """Whether no other side needs to be tried: enough labelled blocks, and samples of every class in every subset."""
        return self.labelled_blocks >= ENOUGH_BLOCKS and bool((self.samples > 0).all())

    @property
    def rank(self) -> tuple[bool, bool, int, bool, int, int]:
        """Sort key of the choices; the largest is the best."""
        acceptable = self.labelled_blocks >= MIN_BLOCKS
        absent = int((self.samples == 0).sum())
        return self.is_good, self.has_all_subsets, -len(self.untrained), acceptable, -absent, int(self.samples.sum())


def choose_patch(grid: GeoBox) -> int:
    """Return the patch size for a grid."""
    return SMALL_PATCH if min(grid.shape) < SMALL else PATCH


def choose_split(
    found: DetectedLabels, grid: GeoBox, executor: Executor, *, patch: int
) -> tuple[DetectedLabels, SplitChoice]:
    """Choose a block size with which every class has training pixels, and count the labelled pixels of each class.

    Classes without pixels on the grid, or without training pixels at every block size, are moved to `labels.ignore`.

    Raises:
        InputError: no label is on the grid, fewer than two classes are left, or a subset is empty.
    """
    sides = _sides(grid, patch)
    best: SplitChoice | None = None
    with progress_bar("choose the blocks of the split", len(sides), unit="sizes") as advance:
        for side in sides:
            choice = _try(found, grid, executor, block=side, patch=patch)
            best = choice if best is None or choice.rank > best.rank else best
            advance(1)
            if choice.is_good:
                break
    while best is not None and best.untrained and len(found.classes) - len(best.untrained) >= 2:
        found = _without(found, best)
        best = _try(found, grid, executor, block=best.block, patch=patch)
    if best is None or best.untrained or not best.has_all_subsets:
        rows, columns = grid.shape
        raise InputError(
            f"{found.url}: the labels do not suffice for training, validation and test blocks with {patch - 1} pixels "
            f"between them, on a grid of {rows} x {columns} pixels. Label more areas, or use a larger scene."
        )
    counted = tuple(replace(c, pixels=int(n)) for c, n in zip(found.classes, best.pixels, strict=True))
    return replace(found, classes=counted), best


def _sides(grid: GeoBox, patch: int) -> list[int]:
    """Return the sides to try: larger than two buffers, so that a block keeps some pixels, and at least four blocks."""
    rows, columns = grid.shape
    sides = SIDES if rows * columns <= LARGE else LARGE_GRID_SIDES
    return [side for side in sides if side > 2 * (patch - 1) and -(-rows // side) * -(-columns // side) >= 4]


def _try(found: DetectedLabels, grid: GeoBox, executor: Executor, *, block: int, patch: int) -> SplitChoice:
    """Split the labels as `prepare` would, and count the samples."""
    rows, columns = grid.shape
    fractions = FractionsSection()
    labels = LabelGrid(open_labels(found.labels, grid, found.names), (rows, columns))
    ids = tuple(c.id for c in found.classes)
    _, table = count_labels(executor, labels, block=block, ids=ids)
    shares = {"train": fractions.train, "validation": fractions.validation, "test": fractions.test}
    codes = assign_blocks(
        table.reshape(-1, len(ids)), {subset: shares[subset] for subset in SUBSETS}, seed=BlocksSection().seed
    )
    split = Blocks(codes.reshape(table.shape[:2]), block, -(-(patch - 1) // 2), (rows, columns))
    samples = count_subsets(executor, labels, split, ids)
    return SplitChoice(block, int((table.sum(axis=2) > 0).sum()), table.sum(axis=(0, 1)), samples)


def _without(found: DetectedLabels, choice: SplitChoice) -> DetectedLabels:
    """Return the labels with the untrained classes moved to `ignore`, and a note that lists them."""
    dropped = [found.classes[i] for i in choice.untrained]
    by_name = found.labels.attribute is not None
    ignored: list[int | str] = []
    for c in dropped:
        ignored.append(c.name if by_name and c.name != f"class {c.id}" else c.id)
    listed = ", ".join(
        f"{c.id} ({c.name}, {int(choice.pixels[i]):,} pixels)" for i, c in zip(choice.untrained, dropped, strict=True)
    )
    note = f"too few pixels on the grid to train on, so left out of the classes: {listed}; see `labels.ignore`"
    return replace(
        found,
        labels=replace(found.labels, ignore=(*found.labels.ignore, *ignored)),
        classes=tuple(c for i, c in enumerate(found.classes) if i not in choice.untrained),
        notes=(*found.notes, note),
    )
