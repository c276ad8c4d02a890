"""Draw a probability sample of a map's pixels in one pass over the map (two if systematic), window by window.

Every pixel has a permanent random number: a hash of the seed, its scene and its position. A simple random sample without
replacement are the pixels with the smallest numbers, of the frame or of each stratum (Ohlsson 1995, "Coordination of samples
using permanent random numbers"). So the sample depends neither on the windows nor on their order, and with the same seed a
larger sample contains the smaller one, of which the labels remain usable. Memory grows with the points, not with the map.

A systematic sample is a square grid of pixels with a random start in each scene and an interval of sqrt(N / n) pixels, a
fraction as a rule: every pixel of the frame has the same inclusion probability, n / N, and the number of points is about n.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.areas.pixel_area import PixelArea
from pipeline.codes import CODES, Subset
from pipeline.grid import Window, windows
from pipeline.maps.products import product
from pipeline.publishing.published_map import PublishedMap
from pipeline.scenes.splitmix64 import GOLDEN, mix
from pipeline.store.patch_store import PatchStore

#: Side of the windows in which a map is read.
SIDE = 1024
#: Positions of a pixel without a class, and of one whose value is none of the map's classes.
_NO_CLASS, _UNKNOWN = -1, -2


@dataclass(frozen=True)
class SceneFrame:
    """The pixels of one scene's published map that may be drawn: those with a class, without excluded samples.

    Excluded pixels are those of the patch store's samples of some subsets, such as the pixels that trained the model.
    """

    name: str
    grid: GeoBox
    published: PublishedMap
    class_ids: tuple[int, ...]
    store: PatchStore | None = None
    excluded: tuple[Subset, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of its grid."""
        rows, columns = self.grid.shape
        return rows, columns

    def read(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return positions of classes (height, width), -1 where there is none, and which pixels are excluded.

        Raises:
            InputError: the map holds an id of no class.
        """
        position = np.full(256, _UNKNOWN, np.int64)
        layer = product("class")
        position[int(layer.nodata)] = _NO_CLASS
        position[list(self.class_ids)] = np.arange(len(self.class_ids))
        ids = self.published.read(layer, window)[0]
        found = position[ids]
        if (found == _UNKNOWN).any():
            raise InputError(
                f"{self.published.folder}: the map has the class id {int(ids[found == _UNKNOWN][0])}, which its item does "
                "not list; run `mibf map` again."
            )
        if self.store is None or not self.excluded:
            return found, np.zeros(found.shape, bool)
        codes = self.store.labelled(window)[1]
        return found, np.isin(codes, [CODES[subset] for subset in self.excluded])


@dataclass
class FrameCounts:
    """Pixels and hectares of each class of the map (C,), in the frame and excluded from it; hectares are NaN if unknown."""

    pixels: NDArray[np.int64]
    hectares: NDArray[np.float64]
    excluded_pixels: NDArray[np.int64]
    excluded_hectares: NDArray[np.float64]

    @classmethod
    def empty(cls, classes: int) -> FrameCounts:
        """Counts of nothing."""
        pixels, hectares = np.zeros(classes, np.int64), np.zeros(classes)
        return cls(pixels, hectares, pixels.copy(), hectares.copy())

    @classmethod
    def total(cls, parts: Sequence[FrameCounts]) -> FrameCounts:
        """The sums of the counts of several scenes."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.sum(column, axis=0) for column in columns))

    def add(self, positions: NDArray[np.int64], excluded: NDArray[np.bool_], areas: NDArray[np.float64]) -> None:
        """Add a window: positions of classes, -1 for none, and which pixels are excluded; areas broadcast to them."""
        classes = len(self.pixels)
        group = np.where(positions < 0, 2 * classes, positions + classes * excluded).ravel()
        pixels = np.bincount(group, minlength=2 * classes + 1)[:-1].astype(np.int64)
        if areas.size == 1:
            hectares = pixels.astype(np.float64) * float(areas.ravel()[0])
        else:
            hectares = np.bincount(group, np.broadcast_to(areas, positions.shape).ravel(), 2 * classes + 1)[:-1].astype(
                np.float64
            )
        self.pixels += pixels[:classes]
        self.excluded_pixels += pixels[classes:]
        self.hectares += hectares[:classes]
        self.excluded_hectares += hectares[classes:]


@dataclass(frozen=True)
class DrawnPoints:
    """Pixels of a sample, in the order of their permanent random numbers: any first part is a random sample, too. (n,)."""

    numbers: NDArray[np.uint64]
    scenes: NDArray[np.int64]  #: positions among the frame's scenes
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    classes: NDArray[np.int64]  #: positions of their classes in the map

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def joined(cls, parts: Sequence[DrawnPoints]) -> DrawnPoints:
        """The points of all parts, of which there may be none."""
        none = cls(np.zeros(0, np.uint64), *(np.zeros(0, np.int64) for _ in range(4)))
        columns = zip(*(vars(part).values() for part in (none, *parts)), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def at(self, chosen: NDArray[np.integer] | NDArray[np.bool_]) -> DrawnPoints:
        """Some of the points."""
        return DrawnPoints(*(each[chosen] for each in vars(self).values()))

    def ordered(self) -> DrawnPoints:
        """The points in the order of their numbers."""
        return self.at(np.lexsort((self.columns, self.rows, self.scenes, self.numbers)))


@dataclass
class _Smallest:
    """The points with the smallest numbers in each stratum."""

    keep: int
    strata: NDArray[np.int64]  #: (C,): the stratum of each class
    found: list[DrawnPoints] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limits = np.full(self.strata.max() + 1, np.iinfo(np.uint64).max, np.uint64)
        self.held = 0

    def add(self, points: DrawnPoints) -> None:
        """Keep those of the points that may be among the smallest."""
        own = points.at(points.numbers <= self.limits[self.strata[points.classes]])
        self.found.append(own)
        self.held += len(own)
        if self.held > 4 * self.keep * len(self.limits):
            self.points()

    def points(self) -> DrawnPoints:
        """Return the `keep` points of each stratum with the smallest numbers, or all."""
        every = DrawnPoints.joined(self.found).ordered()
        stratum = self.strata[every.classes]
        chosen = np.zeros(len(every), bool)
        for number in range(len(self.limits)):
            own = np.flatnonzero(stratum == number)[: self.keep]
            chosen[own] = True
            if 0 < len(own) == self.keep:
                self.limits[number] = every.numbers[own[-1]]
        kept = every.at(chosen)
        self.found, self.held = [kept], len(kept)
        return kept


def scene_key(seed: int, scene: str) -> int:
    """The start of a scene's permanent random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{scene}".encode()).digest()[:8], "big")


def random_numbers(key: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Permanent random numbers of pixels, by their positions in the scene counted row by row (SplitMix64)."""
    return mix(np.asarray(key, np.uint64) + (positions.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def survey(
    scenes: Sequence[SceneFrame],
    *,
    strata: NDArray[np.int64],
    keep: int,
    seed: int,
    advance: Callable[[int], object] = lambda windows: None,
) -> tuple[list[FrameCounts], DrawnPoints]:
    """Count the frame by scene, and find the `keep` pixels of each stratum with the smallest random numbers, in one pass.

    Args:
        scenes: of the frame.
        strata: the stratum of each class of the map (C,).
        keep: points to find in each stratum, at most.
        seed: of the random numbers.
        advance: called with 1 after each window.
    """
    counts, smallest = [FrameCounts.empty(len(strata)) for _ in scenes], _Smallest(keep, strata)
    for number, scene in enumerate(scenes):
        areas, key = PixelArea.of(scene.grid), scene_key(seed, scene.name)
        for window in windows(scene.shape, SIDE):
            positions, excluded = scene.read(window)
            hectares = (
                np.full((1, 1), np.nan) if areas is None else np.asarray(areas.read(window) * areas.hectares, np.float64)
            )
            counts[number].add(positions, excluded, hectares)
            if keep:
                smallest.add(_candidates(scene, number, window, positions, excluded, key))
            advance(1)
    return counts, smallest.points()


def _candidates(
    scene: SceneFrame,
    number: int,
    window: Window,
    positions: NDArray[np.int64],
    excluded: NDArray[np.bool_],
    key: int,
) -> DrawnPoints:
    """The pixels of a window that may be drawn, with their random numbers."""
    rows, columns = np.nonzero((positions >= 0) & ~excluded)
    classes = positions[rows, columns]
    y, x = rows + window.y, columns + window.x
    numbers = random_numbers(key, y * scene.shape[1] + x)
    return DrawnPoints(numbers, np.full(len(y), number), y, x, classes)


def systematic(
    scenes: Sequence[SceneFrame],
    *,
    interval: float,
    seed: int,
    advance: Callable[[int], object] = lambda windows: None,
) -> DrawnPoints:
    """Draw the pixels of a square grid with a random start in each scene.

    Args:
        scenes: of the frame.
        interval: in pixels, at least 1.
        seed: of the random start.
        advance: called with 1 after each window.
    """
    found = []
    for number, scene in enumerate(scenes):
        key = scene_key(seed, scene.name)
        starts = np.random.default_rng(key).random(2)
        lines = [_grid_lines(start, interval, size) for start, size in zip(starts, scene.shape, strict=True)]
        for window in windows(scene.shape, SIDE):
            spans = zip(lines, window.slices, strict=True)
            y, x = (line[slice(*np.searchsorted(line, [span.start, span.stop]))] for line, span in spans)
            if len(y) and len(x):
                positions, excluded = scene.read(window)
                here = np.zeros(positions.shape, bool)
                here[np.ix_(y - window.y, x - window.x)] = True
                found.append(_candidates(scene, number, window, positions, excluded | ~here, key))
            advance(1)
    return DrawnPoints.joined(found).ordered()


def _grid_lines(start: float, interval: float, size: int) -> NDArray[np.int64]:
    """The pixels of a systematic grid along an axis: each has the same probability, 1 / interval, for a random start."""
    number = math.ceil(size / interval - start)
    lines: NDArray[np.int64] = np.floor((start + np.arange(max(number, 0))) * interval).astype(np.int64)
    return lines
