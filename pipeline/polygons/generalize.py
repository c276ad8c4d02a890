"""Generalize a class map: majority filter, then small regions are removed and their place is filled. In windows.

Each step reads a map and writes another one in a temporary folder. Results depend on the map and the rules alone, not on the
size of the windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.areas.pixel_area import PixelArea
from pipeline.grid import Window, windows
from pipeline.io import gdal
from pipeline.polygons import NODATA, WINDOW
from pipeline.polygons.grow import Connectivity, grow
from pipeline.polygons.majority import majority
from pipeline.polygons.regions import SeamRegions, at_seams, label_window
from pipeline.polygons.scratch import Read, create, read_padded, reader

#: Layers of pixels that are filled in one pass over the map.
LAYERS = 64
#: Maximum side of the majority filter, in pixels.
MAX_MAJORITY = 99


@dataclass(frozen=True)
class Rules:
    """How a class map is generalized before its regions are outlined. The defaults change nothing.

    Raises:
        InputError: a value is not valid.
    """

    majority: int = 1  #: side of the majority filter in pixels, odd
    sieve: int = 1  #: smallest number of pixels of a region
    minimum_hectares: float = 0.0  #: minimum mapping unit
    connectivity: Connectivity = 4

    def __post_init__(self) -> None:
        if not (1 <= self.majority <= MAX_MAJORITY and self.majority % 2):
            raise InputError(f"--majority {self.majority}: must be an odd number of pixels up to {MAX_MAJORITY}, such as 3.")
        if self.sieve < 1:
            raise InputError(f"--sieve {self.sieve}: must be a number of pixels, at least 1.")
        if not 0 <= self.minimum_hectares < float("inf"):
            raise InputError(f"--minimum {self.minimum_hectares}: must be an area in hectares, at least 0.")
        if self.connectivity not in (4, 8):
            raise InputError(f"--connectivity {self.connectivity}: must be 4 or 8.")

    @property
    def removes(self) -> bool:
        """Whether regions may be removed."""
        return self.sieve > 1 or self.minimum_hectares > 0


def generalize(
    read: Read,
    shape_yx: tuple[int, int],
    rules: Rules,
    area: PixelArea | None,
    folder: Path,
    *,
    side: int = WINDOW,
    layers: int = LAYERS,
) -> Read:
    """Generalize a map; return the function that reads the result, which is in a temporary folder.

    Args:
        read: reads the map.
        shape_yx: rows and columns of the map.
        rules: how it is generalized.
        area: the areas of its pixels; needed for a minimum mapping unit only.
        folder: for temporary files, of about the size of the compressed map each.
        side: of the windows, in pixels.
        layers: that are filled in one pass over the map; like `side`, it does not affect the result.
    """
    gdal.configure_gdal()
    if rules.majority > 1:
        _filter(read, shape_yx, rules.majority, folder / "majority.tif", side)
        read = reader(folder / "majority.tif")
    if rules.removes:
        read = reader(_without_small(read, shape_yx, rules, area, folder, side=side, layers=layers))
    return read


def _filter(read: Read, shape_yx: tuple[int, int], size: int, path: Path, side: int) -> None:
    write = create(path, shape_yx)
    for window in windows(shape_yx, side):
        write(window, majority(read_padded(read, window, size // 2, shape_yx), size))


def _without_small(
    read: Read,
    shape_yx: tuple[int, int],
    rules: Rules,
    area: PixelArea | None,
    folder: Path,
    *,
    side: int,
    layers: int,
) -> Path:
    """Write the map without its small regions, and fill their place; return its path."""
    path = folder / "kept.tif"
    small = _small_regions(read, shape_yx, rules, area, side)
    write = create(path, shape_yx)
    for window, marks in zip(windows(shape_yx, side), small, strict=True):
        classes = read(window)
        labels, _ = label_window(classes, rules.connectivity)
        write(window, np.where(marks[labels], NODATA, classes))
    number, grown = 0, True
    while grown:
        number += 1
        after = folder / f"grown-{number % 2}.tif"
        grown = _grow_once(read, reader(path), shape_yx, rules.connectivity, after, side=side, layers=layers)
        path = after
    final = folder / "generalized.tif"
    before, write = reader(path), create(final, shape_yx)
    for window in windows(shape_yx, side):
        filled = before(window)
        # Regions without a large one around them are kept as they are.
        write(window, np.where(filled == NODATA, read(window), filled))
    return final


def _grow_once(
    original: Read,
    before: Read,
    shape_yx: tuple[int, int],
    connectivity: Connectivity,
    path: Path,
    *,
    side: int,
    layers: int,
) -> bool:
    """Fill up to `layers` layers of what is missing; return whether anything was filled."""
    grown = False
    write = create(path, shape_yx)
    for window in windows(shape_yx, side):
        classes = before(window)
        if ((classes == NODATA) & (original(window) != NODATA)).any():
            around = read_padded(before, window, layers, shape_yx)
            holes = (around == NODATA) & (read_padded(original, window, layers, shape_yx) != NODATA)
            filled = grow(around, holes, layers=layers, connectivity=connectivity)[layers:-layers, layers:-layers]
            grown = grown or not np.array_equal(filled, classes)
            classes = filled
        write(window, classes)
    return grown


def _small_regions(
    read: Read, shape_yx: tuple[int, int], rules: Rules, area: PixelArea | None, side: int
) -> Iterator[NDArray[np.bool_]]:
    """Find the labels of each window whose regions are too small; in the order of the windows.

    What is held is one byte for each region of a window that touches another window.
    """
    seams = SeamRegions(shape_yx, rules.connectivity)
    sizes: dict[int, NDArray[np.int64]] = {}
    small_at_seams = bytearray(1)
    numbers: list[range] = []
    for _, row in groupby(windows(shape_yx, side), key=lambda window: window.y):
        for window in row:
            labels, classes = label_window(read(window), rules.connectivity)
            measured = _measured(labels, len(classes), window, area)
            seam = at_seams(labels, window, shape_yx)
            numbers.append(seams.add(window, labels, classes, seam))
            small_at_seams.extend(bytes(len(seam)))
            sizes |= dict(zip(numbers[-1], measured[:, seam].T, strict=True))
        for members in seams.end_row():
            total = np.sum([sizes.pop(number) for number in members], axis=0)
            if _too_small(total[:, None], rules, area)[0]:
                for number in members:
                    small_at_seams[number] = 1
    for window, own in zip(windows(shape_yx, side), numbers, strict=True):
        labels, classes = label_window(read(window), rules.connectivity)
        marks = _too_small(_measured(labels, len(classes), window, area), rules, area)
        marks[0] = False
        marks[at_seams(labels, window, shape_yx)] = np.frombuffer(small_at_seams, np.uint8)[own.start : own.stop] > 0
        yield marks


def _measured(labels: NDArray[np.int32], count: int, window: Window, area: PixelArea | None) -> NDArray[np.int64]:
    """Pixels and area of each label, (2, label)."""
    found = np.zeros((2, count), np.int64)
    found[0] = np.bincount(labels.ravel(), minlength=count)
    if area is not None:  # the sums of whole numbers below 2^53 are exact
        found[1] = np.bincount(labels.ravel(), area.read(window).ravel(), count)
    return found


def _too_small(sizes: NDArray[np.int64], rules: Rules, area: PixelArea | None) -> NDArray[np.bool_]:
    small = sizes[0] < rules.sieve
    if rules.minimum_hectares > 0:
        assert area is not None
        small |= sizes[1] * area.hectares < rules.minimum_hectares
    return np.asarray(small)
