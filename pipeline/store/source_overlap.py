"""Measure how many test patches hold a pixel of a source's files that a training patch holds too.

The buffer of a block split keeps patches apart on the reference grid. A pixel of a coarser file covers many reference
pixels, and a resampling kernel reads several file pixels for each, so patches that do not overlap can still hold the same
measurement. Two patches share a file pixel if the file pixels that their reference pixels are computed from intersect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.warp import transform

from pipeline.codes import CODES, Subset
from pipeline.grid import Window, windows
from pipeline.parallel.executor import Executor
from pipeline.rasters.raster import AlignedFile
from pipeline.scenes.source import AlignedSource
from pipeline.scenes.split import dilate
from pipeline.store.patch_store import PatchStore

#: Radii of interpolation kernels, in pixels of the coarser of the two grids; a nearest pixel contains the point.
KERNELS = {"nearest": 0.5, "bilinear": 1.0, "cubic": 2.0, "lanczos": 3.0}
#: Distance in file pixels below which a kernel's edge or a pixel's border is not crossed: rounding of coordinates.
CLOSE = 1e-6
#: Side of the pieces in which labels are read, in reference pixels.
PIECE = 1024
#: Reference pixels between the points that are transformed to another CRS; between them coordinates are interpolated.
STEP = 32

Span = tuple[NDArray[np.int64], NDArray[np.int64]]  #: first and last index of each pixel


@dataclass(frozen=True)
class Footprint:
    """The pixels of a file from which each pixel of the reference grid is computed.

    Cells are file pixels; for a file that is not coarser than the reference grid they are reference pixels, so that their
    number stays below that of the reference pixels.
    """

    grid: GeoBox  #: the reference grid
    file: GeoBox
    to_cells: Affine | None  #: from reference pixels; None if the CRSs differ
    radius_xy: tuple[float, float]  #: cells whose centre is within this distance of a pixel's centre are used
    reach: int  #: maximum distance in reference pixels of two pixels that share a cell

    def spans(self, window: Window) -> tuple[Span, Span]:
        """The cells of every pixel of a window: rows (height, width) and columns (height, width), first and last."""
        x, y = self.positions(np.arange(window.y, window.y + window.height), np.arange(window.x, window.x + window.width))
        return _span(y, self.radius_xy[1]), _span(x, self.radius_xy[0])

    def positions(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
        """The positions x and y of pixel centres in cells, each (rows, columns)."""
        x, y = columns + 0.5, rows[:, None] + 0.5
        if self.to_cells is not None:
            a, b, c, d, e, f = self.to_cells[:6]
            return a * x + b * y + c, d * x + e * y + f
        node_y, across_y = _nodes(rows)
        node_x, across_x = _nodes(columns)
        grid_y, grid_x = np.meshgrid(node_y, node_x, indexing="ij")
        found = to_file(self.grid, self.file, grid_x.ravel(), grid_y.ravel())
        return tuple(across_y @ np.nan_to_num(axis.reshape(grid_x.shape), nan=-1e9) @ across_x.T for axis in found)


def to_file(
    grid: GeoBox, file: GeoBox, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Transform positions in a grid's pixels to positions in a file's pixels, in another CRS; NaN where that fails."""
    a, b, c, d, e, f = grid.affine[:6]
    found = transform(grid.crs.to_wkt(), file.crs.to_wkt(), a * x + b * y + c, d * x + e * y + f)
    easting, northing = (np.where(np.isfinite(axis), axis, np.nan) for axis in map(np.asarray, found))
    a, b, c, d, e, f = (~file.affine)[:6]
    return a * easting + b * northing + c, d * easting + e * northing + f


def _nodes(pixels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions of nodes along an axis, and the weights (pixels, nodes) that interpolate from them to pixel centres."""
    count = max(2, -(-len(pixels) // STEP) + 1)
    nodes = np.linspace(pixels[0], pixels[-1] + 1, count)
    position = (pixels + 0.5 - nodes[0]) / (nodes[1] - nodes[0])
    return nodes, np.maximum(0, 1 - abs(position[:, None] - np.arange(count)))


def _span(position: NDArray[np.float64], radius: float) -> Span:
    first = np.floor(position - 0.5 - radius + CLOSE).astype(np.int64) + 1
    return first, np.maximum(first, np.ceil(position - 0.5 + radius - CLOSE).astype(np.int64) - 1)


def footprints(source: AlignedSource, grid: GeoBox) -> tuple[Footprint, ...]:
    """The footprints of a source's files on the reference grid, one for all files with the same pixels and kernel.

    Files are left out if two reference pixels never share a pixel of theirs: only patches that overlap do then.
    """
    found = {}
    for part in source.parts:
        footprint = _footprint(part, source.scale, grid, halo=source.declared.halo)
        if footprint.reach:
            found[_lattice(footprint, part)] = footprint
    return tuple(found.values())


def _footprint(part: AlignedFile, scale: int, grid: GeoBox, *, halo: int) -> Footprint:
    alignment, file = part.alignment, part.header.grid
    to_cells: Affine | None = None
    if alignment.kind == "exact":
        first = Affine.translation(alignment.column, alignment.row)
        margin = Affine.translation(part.margin, part.margin)
        to_cells = first * Affine.scale(1 / alignment.coarser) * margin * Affine.scale(scale)
    elif file.crs == grid.crs:
        to_cells = ~file.affine * grid.affine
    steps = _steps(grid, file) if to_cells is None else np.array([[to_cells.a, to_cells.b], [to_cells.d, to_cells.e]])
    sizes = abs(steps).sum(axis=1)  # of a reference pixel in file pixels, along the file's x and y
    kernel = "nearest" if alignment.kind == "exact" else alignment.resampling
    radius_x, radius_y = (
        _radius(kernel, size / scale) + size * (scale - 1 + 2 * halo) / (2 * scale) for size in sizes.tolist()
    )
    least = max(float(np.linalg.svd(steps, compute_uv=False)[-1]), float(np.finfo(np.float32).tiny))
    if alignment.kind == "exact" and scale % alignment.coarser == 0 and not halo:
        reach = 0  # every file pixel lies within one reference pixel
    else:
        reach = max(0, math.ceil(2 * max(radius_x, radius_y) / least - CLOSE) - 1)
    if least >= 1:
        shift = 0.5 * (reach % 2)
        return Footprint(grid, file, Affine.translation(shift, shift), ((reach + 1) / 2,) * 2, reach)
    return Footprint(grid, file, to_cells, (radius_x, radius_y), reach)


def _radius(kernel: str, size: float) -> float:
    """Radius of a kernel in file pixels, for pixels of `size` file pixels."""
    if kernel == "nearest":
        return KERNELS[kernel]
    if kernel in KERNELS:
        return KERNELS[kernel] * max(1.0, size)
    return size / 2 + 0.5  # average, mode, min, max, med: all file pixels that touch the pixel


def _steps(grid: GeoBox, file: GeoBox) -> NDArray[np.float64]:
    """How far one reference pixel along x and y leads in file pixels: ((x by x, x by y), (y by x, y by y))."""
    rows, columns = grid.shape
    y, x = (a.ravel() for a in np.meshgrid(*(np.linspace(0.1, 0.9, 5) * n for n in (rows, columns)), indexing="ij"))
    start, right, down = (np.stack(to_file(grid, file, x + dx, y + dy)) for dx, dy in ((0, 0), (1, 0), (0, 1)))
    return np.stack([np.nanmedian(right - start, axis=1), np.nanmedian(down - start, axis=1)], axis=1)


def _lattice(footprint: Footprint, part: AlignedFile) -> tuple[object, ...]:
    """The key of files whose pixels are those of one endless grid, such as the tiles of a mosaic."""
    radius = tuple(round(r, 6) for r in footprint.radius_xy)
    if footprint.to_cells is not None:
        a, b, c, d, e, f = footprint.to_cells[:6]
        return (*(round(v, 9) for v in (a, b, d, e)), round(c % 1, 3) % 1, round(f % 1, 3) % 1, *radius)
    own = part.header.grid.affine
    x, y = ~Affine(own.a, own.b, 0, own.d, own.e, 0) * (own.c, own.f)
    return str(part.header.grid.crs), own.a, own.b, own.d, own.e, round(x % 1, 3) % 1, round(y % 1, 3) % 1, *radius


@dataclass
class SourceOverlap:
    """Test patches that hold a file pixel of a source which a training patch holds.

    `reach` is the maximum distance in reference pixels of two pixels that share a file pixel: with a buffer of patch - 1 +
    `reach` pixels no test patch shares one.
    """

    reach: int
    shared: int = 0  #: number of test patches
    tests: int = 0  #: number of all test patches

    @property
    def share(self) -> float:
        """Share of the test patches; NaN without test patches."""
        return self.shared / self.tests if self.tests else float("nan")


@dataclass(frozen=True)
class _Task:
    url: str
    patch: int
    sources: tuple[tuple[str, tuple[Footprint, ...]], ...]
    margin: int


def measure_source_overlap(
    executor: Executor, url: str, sources: Sequence[AlignedSource], *, patch: int
) -> dict[str, SourceOverlap]:
    """Measure the overlap of test and training patches in the file pixels of every source of a store, by its name.

    Sources with `footprints` of none are left out: their patches share a file pixel only if they overlap.
    """
    store = PatchStore(url)
    taken = {s.declared.name: footprints(s, store.grid) for s in sources}
    found = {name: SourceOverlap(max(f.reach for f in each)) for name, each in taken.items() if each}
    if not found:
        return {}
    margin = patch - 1 + max(each.reach for each in found.values())
    task = _Task(url, patch, tuple((name, taken[name]) for name in found), margin)

    def take(part: dict[str, tuple[int, int]]) -> None:
        for name, (shared, tests) in part.items():
            found[name].shared += shared
            found[name].tests += tests

    # Larger windows for larger margins: at most four times their own pixels are read around them.
    executor.each(_count, task, windows(store.shape, max(store.shard, 2 * margin)), take)
    return found


def _count(task: _Task, window: Window) -> dict[str, tuple[int, int]]:
    """Count a window's test patches that share a file pixel with a training patch, and all of them, by source."""
    store, half = PatchStore(task.url), task.patch // 2
    tested = [piece for piece in _pieces(window) if _codes(store, piece, 0, "test").any()]
    around = _grown(window, task.margin, store.shape)
    marks = {(name, i): _Marks.over(f, around) for name, own in task.sources for i, f in enumerate(own)} if tested else {}
    for piece in _pieces(around) if tested else []:
        held = dilate(_codes(store, piece, half, "train"), half)
        if held.any():
            for mark in marks.values():
                mark.add(piece, held)
    counts = dict.fromkeys((name for name, _ in task.sources), (0, 0))
    for piece in tested:
        tests = _codes(store, piece, 0, "test")
        for name, own in task.sources:
            shared = np.zeros(tests.shape, bool)
            for i, _ in enumerate(own):
                shared |= dilate(marks[name, i].shared(Window(piece.y - half, piece.x - half, *_plus(piece, half))), half)
            count, total = counts[name]
            counts[name] = (count + int((tests & shared).sum()), total + int(tests.sum()))
    return counts


def _pieces(window: Window) -> list[Window]:
    found = windows((window.height, window.width), PIECE)
    return [Window(window.y + w.y, window.x + w.x, w.height, w.width) for w in found]


def _plus(window: Window, halo: int) -> tuple[int, int]:
    return window.height + 2 * halo, window.width + 2 * halo


def _grown(window: Window, margin: int, shape_yx: tuple[int, int]) -> Window:
    """A window with a margin, cropped to the grid."""
    y, x = max(0, window.y - margin), max(0, window.x - margin)
    bottom, right = min(shape_yx[0], window.y + window.height + margin), min(shape_yx[1], window.x + window.width + margin)
    return Window(y, x, bottom - y, right - x)


def _codes(store: PatchStore, window: Window, halo: int, subset: Subset) -> NDArray[np.bool_]:
    """Where a window with a halo has samples of a subset; nowhere beyond the grid."""
    inside = _grown(window, halo, store.shape)
    _, codes = store.labelled(inside)
    top, left = inside.y - window.y + halo, inside.x - window.x + halo
    high, wide = _plus(window, halo)
    around = ((top, high - top - inside.height), (left, wide - left - inside.width))
    return np.pad(codes == CODES[subset], around)


class _Box(NamedTuple):
    """A rectangle of cells: rows [y, y + height), columns [x, x + width)."""

    y: int
    x: int
    height: int
    width: int


@dataclass
class _Marks:
    """The cells that training patches hold, in the rectangle that a window of the reference grid covers."""

    footprint: Footprint
    box: _Box
    edges: NDArray[np.int32]  #: (height + 1, width + 1): its sums over rows and columns count the marks on each cell
    _sums: NDArray[np.int64] | None = field(default=None)

    @classmethod
    def over(cls, footprint: Footprint, window: Window) -> _Marks:
        """No marks, in the cells of a window."""
        rows, columns = (np.unique([*range(start, start + size, STEP), start + size - 1]) for start, size in _axes(window))
        x, y = footprint.positions(rows, columns)
        (top, bottom), (left, right) = (
            (math.floor(axis.min() - radius) - 2, math.ceil(axis.max() + radius) + 2)
            for axis, radius in ((y, footprint.radius_xy[1]), (x, footprint.radius_xy[0]))
        )
        box = _Box(top, left, bottom - top + 1, right - left + 1)
        return cls(footprint, box, np.zeros((box.height + 1, box.width + 1), np.int32))

    def _corners(self, window: Window) -> tuple[NDArray[np.int64], ...]:
        """First and end row, first and end column of each pixel's cells within the box."""
        (top, bottom), (left, right) = self.footprint.spans(window)
        rows = (np.clip(edge - self.box.y, 0, self.box.height) for edge in (top, bottom + 1))
        columns = (np.clip(edge - self.box.x, 0, self.box.width) for edge in (left, right + 1))
        return (*rows, *columns)

    def add(self, window: Window, held: NDArray[np.bool_]) -> None:
        """Mark the cells of the pixels of a window that are `held`."""
        top, bottom, left, right = (np.broadcast_to(edge, held.shape)[held] for edge in self._corners(window))
        across, size = self.edges.shape[1], self.edges.size
        for y, x, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
            self.edges += sign * np.bincount(y * across + x, minlength=size).reshape(self.edges.shape).astype(np.int32)

    def shared(self, window: Window) -> NDArray[np.bool_]:
        """The pixels (height, width) of a window that have a marked cell; call it after the last `add`."""
        if self._sums is None:
            marked = self.edges.cumsum(0).cumsum(1)[:-1, :-1] > 0
            self._sums = np.pad(marked.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
        top, bottom, left, right = self._corners(window)
        sums = self._sums
        counts = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        return np.asarray(np.broadcast_to(counts > 0, (window.height, window.width)))


def _axes(window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    return (window.y, window.height), (window.x, window.width)
