"""Count labels window by window before anything is written, and make the splits that depend on these counts.

Labels of two scenes are compared where their ground overlaps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError
from shapely.geometry.base import BaseGeometry

from pipeline.codes import SUBSETS, UNLABELLED
from pipeline.grid import Window, windows
from pipeline.parallel.executor import Executor
from pipeline.rasters.longitude import cycle, same_crs
from pipeline.scenes.labels import OpenLabels
from pipeline.scenes.split import RandomSplit, Split, dilate, pixel_keys, sample_count

#: Side of the windows that are counted one at a time, in pixels.
SIDE = 1024
#: Bins of the histogram of random-split keys.
BINS = 4096
#: Points per side of a grid: a straight side is a curve in another CRS.
POINTS = 64
#: Scenes touch, and do not overlap, if the ground that they share is at most this wide, in reference pixels.
TOUCHING = 0.5


@dataclass(frozen=True)
class LabelGrid:
    """The labels of a scene, and its shape."""

    labels: OpenLabels
    shape_yx: tuple[int, int]

    @property
    def windows(self) -> list[Window]:
        """The windows to count."""
        return windows(self.shape_yx, SIDE)


def count_labels(
    executor: Executor, scene: LabelGrid, *, block: int, ids: tuple[int, ...]
) -> tuple[dict[float, int], NDArray[np.int64]]:
    """Count the pixels of labels that belong to no class, and the labelled pixels (block row, block column, class)."""
    rows, columns = scene.shape_yx
    shape = (-(-rows // block), -(-columns // block), len(ids))
    total, unknown = np.zeros(int(np.prod(shape)), np.int64), Counter[float]()

    def take(part: tuple[dict[float, int], NDArray[np.int64], NDArray[np.int64]]) -> None:
        unknown.update(part[0])
        total[part[1]] += part[2]

    executor.each(_count_window, (scene.labels, block, shape[1], ids), scene.windows, take)
    return dict(unknown), total.reshape(shape)


def _count_window(
    shared: tuple[OpenLabels, int, int, tuple[int, ...]], window: Window
) -> tuple[dict[float, int], NDArray[np.int64], NDArray[np.int64]]:
    labels, block, across, ids = shared
    position = np.full(256, -1, np.int64)
    position[list(ids)] = np.arange(len(ids))
    found = labels.read(window)
    rows, columns = np.nonzero(found != UNLABELLED)
    blocks = (rows + window.y) // block * across + (columns + window.x) // block
    cells, counts = np.unique(blocks * len(ids) + position[found[rows, columns]], return_counts=True)
    return labels.unknown(window), cells, counts


def count_subsets(executor: Executor, scene: LabelGrid, split: Split, ids: tuple[int, ...]) -> NDArray[np.int64]:
    """Count the labelled pixels (subset, class) of a split."""
    total = np.zeros((len(SUBSETS), len(ids)), np.int64)

    def take(part: NDArray[np.int64]) -> None:
        np.add(total, part, out=total)

    executor.each(_count_subsets, (scene.labels, split, ids), scene.windows, take)
    return total


def _count_subsets(shared: tuple[OpenLabels, Split, tuple[int, ...]], window: Window) -> NDArray[np.int64]:
    labels, split, ids = shared
    found = labels.read(window)
    codes = split.codes(window, found).astype(np.int64)
    counts = np.bincount((codes * 256 + found).ravel(), minlength=256 * (len(SUBSETS) + 1))
    return counts.reshape(-1, 256)[1:, list(ids)]


def random_splits(
    executor: Executor,
    scenes: Sequence[LabelGrid],
    counts: NDArray[np.int64],
    *,
    ids: tuple[int, ...],
    train: float,
    validation: float,
    seed: int,
) -> list[RandomSplit]:
    """Make a random split over scenes, given the labelled pixels of each class; subset sizes are exact.

    `train` and `validation` are a share of each class's pixels if below 1, else a number of pixels. At most half of a
    class's pixels are for training and a quarter for validation, which leaves some for testing.
    """
    wanted = {}
    for class_id, available in zip(ids, counts.tolist(), strict=True):
        first = sample_count(train, available, at_most=0.5)
        wanted[class_id] = (first, first + sample_count(validation, available, at_most=0.25))
    below = _thresholds(executor, scenes, wanted, seed=seed)
    return [RandomSplit(scene.shape_yx[1], seed, position, below) for position, scene in enumerate(scenes)]


def _thresholds(
    executor: Executor, scenes: Sequence[LabelGrid], wanted: dict[int, tuple[int, int]], *, seed: int
) -> dict[int, tuple[int, int]]:
    """Per class, the keys below which exactly the wanted numbers of keys are: find the bin, then the rank within it."""
    histogram = np.zeros((256, BINS), np.int64)

    def count(part: NDArray[np.int64]) -> None:
        np.add(histogram, part, out=histogram)

    for position, scene in enumerate(scenes):
        executor.each(_count_keys, (scene, seed, position), scene.windows, count)
    cumulative = histogram.cumsum(axis=1)
    # The bin that contains the last key of each subset; the rank within the bin is resolved below.
    bins = {c: tuple(int(np.searchsorted(cumulative[c], n)) for n in numbers) for c, numbers in wanted.items()}
    inside: dict[tuple[int, int], list[NDArray[np.uint64]]] = {(c, b): [] for c, pair in bins.items() for b in pair}

    def gather(part: dict[tuple[int, int], NDArray[np.uint64]]) -> None:
        for bin_key, keys in part.items():
            inside[bin_key].append(keys)

    for position, scene in enumerate(scenes):
        executor.each(_gather_keys, (scene, seed, position, tuple(inside)), scene.windows, gather)
    below = {}
    for c, pair in bins.items():
        limits = []
        for b, number in zip(pair, wanted[c], strict=True):
            keys = np.sort(np.concatenate(inside[c, b])) if inside[c, b] else np.zeros(0, np.uint64)
            rest = number - int(cumulative[c, b] - histogram[c, b])
            limits.append(int(keys[rest - 1]) + 1 if 0 < rest <= len(keys) else 0)
        below[c] = (limits[0], limits[1])
    return below


def _bin(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (keys >> np.uint64(52)).astype(np.int64)  # the top 12 of 64 bits: BINS


def _labelled_keys(
    scene: LabelGrid, seed: int, position: int, window: Window
) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    found = scene.labels.read(window)
    keys = pixel_keys(window, columns=scene.shape_yx[1], seed=seed, scene=position)
    there = found != UNLABELLED
    return found[there], keys[there]


def _count_keys(shared: tuple[LabelGrid, int, int], window: Window) -> NDArray[np.int64]:
    ids, keys = _labelled_keys(*shared, window)
    return np.bincount(ids.astype(np.int64) * BINS + _bin(keys), minlength=256 * BINS).reshape(256, BINS)


def _gather_keys(
    shared: tuple[LabelGrid, int, int, tuple[tuple[int, int], ...]], window: Window
) -> dict[tuple[int, int], NDArray[np.uint64]]:
    scene, seed, position, wanted = shared
    ids, keys = _labelled_keys(scene, seed, position, window)
    bins = _bin(keys)
    return {(c, b): keys[(ids == c) & (bins == b)] for c, b in wanted}


def count_shared(one: LabelGrid, its_grid: GeoBox, other: LabelGrid, other_grid: GeoBox, *, reach: int) -> int:
    """Count labelled pixels of one scene that have a labelled pixel of another within `reach` of their pixels.

    Only where the scenes overlap by more than `TOUCHING`: scenes that touch share no ground.
    """
    ground = _ground(other_grid, its_grid)
    if ground is None or ground.intersection(shapely.box(0, 0, *one.shape_yx[::-1])).buffer(-TOUCHING / 2).is_empty:
        return 0
    near = ground.buffer(reach)
    scale = max(1.0, float(np.sqrt(np.prod(other.shape_yx) / ground.area)))  # the other's pixels per pixel, along an axis
    side = max(64, int(SIDE / scale))
    shared = 0
    for window in windows(one.shape_yx, side):
        if near.intersects(shapely.box(window.x, window.y, window.x + window.width, window.y + window.height)):
            rows, columns = np.nonzero(one.labels.read(window) != UNLABELLED)
            places = _indices(its_grid, other_grid, np.add(columns, window.x + 0.5), np.add(rows, window.y + 0.5))
            shared += _count_near(other, *places, reach=int(np.ceil(reach * scale)))
    return shared


def _count_near(other: LabelGrid, columns: NDArray[np.float64], rows: NDArray[np.float64], *, reach: int) -> int:
    """Count the places, in fractional pixels of a scene, that have a labelled pixel within `reach`."""
    height, width = other.shape_yx
    there = (columns >= -reach) & (columns < width + reach) & (rows >= -reach) & (rows < height + reach)
    if not there.any():
        return 0
    x, y = (np.floor(axis[there]).astype(np.int64) for axis in (columns, rows))
    left, top = max(0, int(x.min()) - reach), max(0, int(y.min()) - reach)
    right, bottom = min(width, int(x.max()) + reach + 1), min(height, int(y.max()) + reach + 1)
    labelled = other.labels.read(Window(top, left, bottom - top, right - left)) != UNLABELLED
    # The window with a margin that makes every place, and what is within reach of it, an index.
    before_y, before_x = top - (int(y.min()) - reach), left - (int(x.min()) - reach)
    after_y, after_x = int(y.max()) + reach + 1 - bottom, int(x.max()) + reach + 1 - right
    close = dilate(np.pad(labelled, ((before_y, after_y), (before_x, after_x))), reach)
    return int(close[y - y.min(), x - x.min()].sum())


def _ground(other: GeoBox, grid: GeoBox) -> BaseGeometry | None:
    """A grid's outline in the pixels of another; None if it cannot be transformed."""
    rows, columns = other.shape
    steps = np.arange(POINTS) / POINTS
    ones, zeros = np.ones(POINTS), np.zeros(POINTS)
    x = columns * np.concatenate([steps, ones, 1 - steps, zeros])
    y = rows * np.concatenate([zeros, steps, ones, 1 - steps])
    corners = np.column_stack(_indices(other, grid, x, y))
    if not np.isfinite(corners).all():
        return None
    outline = shapely.Polygon(corners)
    return outline if outline.is_valid else outline.convex_hull


def _indices(
    grid: GeoBox, other: GeoBox, columns: NDArray[np.float64], rows: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Columns and rows of a grid as those of another; where longitudes wrap, the turn that is closest to its middle."""
    x, y = grid.affine * (columns, rows)
    if not same_crs(grid.crs, other.crs):
        try:
            x, y = grid.crs.transformer_to_crs(other.crs, always_xy=True)(x, y)
        except ProjError:
            return np.full(len(columns), np.nan), np.full(len(rows), np.nan)
    around = cycle(other.crs.to_wkt())
    x, y = np.asarray(x), np.asarray(y)
    if around is not None and len(x):
        box = other.boundingbox
        x = x - around.period * np.round((x - (box.left + box.right) / 2) / around.period)
    found = ~other.affine * (x, y)
    return np.asarray(found[0]), np.asarray(found[1])
