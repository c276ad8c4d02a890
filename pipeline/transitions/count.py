"""Count the pixels and areas of each pair of classes of two maps, window by window.

These counts are facts about the two maps, not estimates of change on the ground: pixels that either map has wrong appear as
changes. With a probability sample stratified by these pairs, change can be estimated (Olofsson et al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.areas.pixel_area import PixelArea
from pipeline.codes import UNLABELLED
from pipeline.grid import Window, windows
from pipeline.io import storage
from pipeline.publishing.class_map import ClassMap
from pipeline.rasters.longitude import same_crs

#: Side in pixels of the windows in which maps are read.
WINDOW = 1024
#: Largest distance in pixels between the corners of two grids that count as the same.
CLOSE = 1e-3
#: Number of codes of a pixel of a class map.
_CODES = 256
#: Takes the class ids of a window of both maps.
Take = Callable[[Window, NDArray[np.uint8], NDArray[np.uint8]], object]


@dataclass(frozen=True)
class Stratum:
    """The pixels of one pair of classes: a stratum for a sample of change."""

    before: str
    after: str
    pixels: int
    hectares: float  #: NaN where the grid has no areas


@dataclass(frozen=True)
class Transitions:
    """Pixels and hectares by class in the first map (rows) and in the second one (columns)."""

    classes: tuple[str, ...]  #: of either map, by name
    pixels: NDArray[np.int64]  #: (classes, classes)
    hectares: NDArray[np.float64]  #: (classes, classes); NaN where the grid has no areas
    only_first: int  #: pixels that have a class in the first map alone
    only_second: int

    @property
    def strata(self) -> list[Stratum]:
        """The pairs of classes that occur, unchanged ones included."""
        return [
            Stratum(self.classes[i], self.classes[j], int(self.pixels[i, j]), float(self.hectares[i, j]))
            for i, j in np.argwhere(self.pixels).tolist()
        ]

    @property
    def changed_pixels(self) -> int:
        """Pixels whose classes differ."""
        return int(self.pixels.sum() - np.trace(self.pixels))

    @property
    def changed_hectares(self) -> float:
        """Area of the pixels whose classes differ."""
        return float(self.hectares[~np.eye(len(self.classes), dtype=bool)].sum())


def check_same_grid(first: ClassMap, second: ClassMap) -> None:
    """Check that two maps have the same pixels.

    Raises:
        InputError: they do not; the message says what differs, and what to do.
    """
    one, other = first.grid, second.grid
    if (one.crs is None) != (other.crs is None) or (one.crs is not None and not same_crs(one.crs, other.crs)):
        found = f"their CRSs are {_crs_name(first)} and {_crs_name(second)}"
    elif one.shape != other.shape:
        found = f"they have {one.shape[0]} x {one.shape[1]} and {other.shape[0]} x {other.shape[1]} pixels"
    else:
        rows, columns = one.shape
        moved = ~one.affine * other.affine
        corners = [(0, 0), (columns, 0), (0, rows)]
        distance = max(abs(a - b) for corner in corners for a, b in zip(moved * corner, corner, strict=True))
        if distance <= CLOSE:
            return
        found = f"their pixels are up to {distance:.3g} pixels apart"
    raise InputError(
        f"{storage.redact_url(first.folder)} and {storage.redact_url(second.folder)} are not on the same grid: {found}. Map "
        "one of the scenes on the grid of the other: copy the other's `grid` section (crs, resolution, bounds) into its "
        "configuration, then run `mibf prepare` and `mibf map`."
    )


def _crs_name(found: ClassMap) -> str:
    crs = found.grid.crs
    if crs is None:
        return "none"
    return f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else str(crs.proj.name)


def count_transitions(
    first: ClassMap,
    second: ClassMap,
    *,
    take: Take | None = None,
    progress: AbstractContextManager[Callable[[int], object]] | None = None,
) -> Transitions:
    """Count the pairs of classes of two maps; classes of the same name are the same, whatever their ids.

    Args:
        first: the earlier map.
        second: the later map.
        take: is called with each window, row by row.
        progress: gives a function that is called with the number of pixels of each window.

    Raises:
        InputError: the maps are not on the same grid, or a map has a class id that its item does not describe.
    """
    check_same_grid(first, second)
    names, tables = _join_classes(first, second)
    count = len(names) + 1
    pixels, sums = np.zeros(count * count, np.int64), np.zeros(count * count, np.int64)
    try:
        area: PixelArea | None = PixelArea(first.grid)
    except InputError:
        area = None
    with progress or nullcontext(lambda _: None) as advance:
        for window in windows(first.shape, WINDOW):
            before, after = first.read_classes(window), second.read_classes(window)
            rows, columns = (
                _positions(each, codes, table)
                for each, codes, table in zip((first, second), (before, after), tables, strict=True)
            )
            pairs = (rows.astype(np.int64) * count + columns).ravel()
            pixels += np.bincount(pairs, minlength=count * count)
            if area is not None:
                sums += np.bincount(pairs, area.read(window).ravel(), count * count).astype(np.int64)
            if take is not None:
                take(window, before, after)
            advance(window.height * window.width)
    for each in (first, second):
        each.check_unchanged()
    square = pixels.reshape(count, count)
    unit = np.nan if area is None else area.hectares
    hectares = sums.reshape(count, count)[:-1, :-1].astype(np.float64) * unit
    only_first, only_second = int(square[:-1, -1].sum()), int(square[-1, :-1].sum())
    return Transitions(names, square[:-1, :-1], hectares, only_first, only_second)


def _join_classes(first: ClassMap, second: ClassMap) -> tuple[tuple[str, ...], list[NDArray[np.int16]]]:
    """The classes of both maps by name, and the position of each id of either map; -1 for unknown ids."""
    for each in (first, second):
        listed = [c.name for c in each.classes]
        twice = next((name for name in listed if listed.count(name) > 1), None)
        if twice is not None:
            raise InputError(
                f"{storage.redact_url(each.folder)}: two classes are called {twice!r}, so that classes cannot be joined by "
                "name; rename one of them in the configuration, and run `mibf map` again."
            )
    names = tuple(dict.fromkeys(c.name for each in (first, second) for c in each.classes))
    return names, [_table(each.classes, names) for each in (first, second)]


def _table(classes: Sequence[ClassName], names: tuple[str, ...]) -> NDArray[np.int16]:
    table = np.full(_CODES, -1, np.int16)
    table[[c.id for c in classes]] = [names.index(c.name) for c in classes]
    table[UNLABELLED] = len(names)
    return table


def _positions(found: ClassMap, codes: NDArray[np.uint8], table: NDArray[np.int16]) -> NDArray[np.int16]:
    positions = table[codes]
    if (positions < 0).any():
        unknown = sorted(set(codes[positions < 0].tolist()))
        raise InputError(
            f"{storage.redact_url(found.folder)}: the map has class {', '.join(map(str, unknown))}, which its item does not "
            "describe; run `mibf map` again."
        )
    return positions
