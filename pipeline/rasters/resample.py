"""Align a raster with a grid, window by window: pixel by pixel where the grids nest, otherwise resampled by GDAL.

A pixel's value hardly depends on the requested window: coordinates are accurate to `TOLERANCE`, with another error in each
window, and values agree within 1 in 20,000 of their range. GDAL's default tolerance is an eighth of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import Header, OpenRaster, RasterFile, in_memory, warped_dtype
from pipeline.rasters.longitude import (
    Extent,
    RasterPart,
    cycle,
    engineering_name,
    extent_of,
    extents_in,
    needed_parts,
    same_crs,
    shifts,
)

#: Grids nest if no corner is off by more than this fraction of a pixel.
CLOSE = 1e-2
#: Images without a CRS contradict each other if their transforms place a corner farther apart, in grid pixels.
CONTRADICTION = 0.5
#: Error tolerance in pixels of GDAL's coordinate transforms. Not 0, which a warped VRT rejects.
TOLERANCE = 1e-6
#: Maximum values (pixels x bands) of a raster held in memory to resample one piece of a window.
MAX_PIXELS_IN_MEMORY = 1 << 24
Kind = Literal["exact", "resampled"]


@dataclass(frozen=True)
class Alignment:
    """How a raster maps onto a grid.

    Exact: grid pixel (y, x) is raster pixel (y // coarser + row, x // coarser + column); no value is interpolated. Where
    longitudes wrap, columns that differ by `turn` are the same place.
    """

    kind: Kind
    row: int = 0
    column: int = 0
    coarser: int = 1  #: grid pixels per raster pixel along an axis
    turn: int = 0  #: raster pixels per turn of the Earth; 0 if the grid needs only one copy of the raster
    resampling: str = "nearest"
    #: Grid pixels per raster pixel along x and y, at most 1; sets the kernel's extent. GDAL would derive it from each
    #: window separately.
    reach: tuple[float, float] = (1.0, 1.0)

    @property
    def interpolates(self) -> bool:
        """Whether the output has values that the raster does not contain."""
        return self.kind == "resampled" and self.resampling not in ("nearest", "mode", "min", "max", "med")

    @property
    def repeats(self) -> bool:
        """Whether neighbors may have the value of one raster pixel, which makes steps of slopes."""
        if self.kind == "exact":
            return self.coarser > 1
        if self.resampling in ("bilinear", "cubic", "lanczos"):
            return False
        return self.resampling == "nearest" or max(self.reach) == 1

    def __str__(self) -> str:
        if self.kind == "resampled":
            return f"resampled, {self.resampling}"
        return "exact" if self.coarser == 1 else f"exact, each pixel repeated {self.coarser} x {self.coarser} times"


def align(
    file: RasterFile, header: Header, grid: GeoBox, *, resampling: str | None, like: RasterFile | None = None
) -> Alignment:
    """Determine how a raster maps onto a grid: exactly where they nest, else by `resampling` (None: bilinear).

    With a method other than nearest, a coarser raster is resampled even if each of its pixels covers complete grid pixels.
    Messages name the file `like` whose grid the reference grid is.

    Raises:
        InputError: the raster cannot be transformed to the grid, or does not overlap it.
    """
    own = header.grid
    if own.crs is None and grid.crs is None:
        return _on_image(file, own, grid, like)
    if own.crs is None and header.rpcs:
        raise InputError(
            f"{file}: is georeferenced by rational polynomial coefficients (RPCs) only; orthorectify it first, with an "
            "elevation model, e.g. with `gdalwarp -rpc -to RPC_DEM=dem.tif`."
        )
    if own.crs is None or grid.crs is None:
        which = "has no CRS" if own.crs is None else "has a CRS but the reference grid has none"
        raise InputError(
            f"{file}: {which}, and its grid ({own.shape[0]} x {own.shape[1]} pixels) differs from the reference grid "
            f"({grid.shape[0]} x {grid.shape[1]}); assign a CRS first, for example with `rio edit-info --crs`."
        )
    _check_transformable(file, own, grid)
    placed = _check_overlap(file, own, grid)
    if same_crs(own.crs, grid.crs):
        nested = _nested_copies(own, grid, placed)
        if nested is not None and (nested.coarser == 1 or resampling in (None, "nearest")):
            return nested
    return Alignment("resampled", resampling=resampling or "bilinear", reach=_reach(header, grid))


def _reach(header: Header, grid: GeoBox) -> tuple[float, float]:
    """Grid pixels per raster pixel along the grid's x and y, at most 1.

    The median over sample points of the grid, from the distance in the raster that a step of one grid pixel covers.
    Bounding boxes of windows are not used because they grow when rotated.
    """
    rows, columns = grid.shape
    y, x = (
        axis.ravel() for axis in np.meshgrid(*(np.linspace(0.1, 0.9, 5) * size for size in (rows, columns)), indexing="ij")
    )
    steps = []
    for right, down in ((0, 0), (1, 0), (0, 1)):
        points = [grid.affine * point for point in zip(x + right, y + down, strict=True)]
        if same_crs(grid.crs, header.grid.crs):
            found = list(zip(*points, strict=True))
        else:
            found = transform(grid.crs.to_wkt(), header.grid.crs.to_wkt(), *zip(*points, strict=True))
        steps.append(np.array([~header.grid.affine * point for point in zip(*found, strict=True)]))
    reach = []
    for step in steps[1:]:
        lengths = np.hypot(*(step - steps[0]).T)
        lengths = lengths[np.isfinite(lengths) & (lengths > 0)]
        share = float(np.median(1 / lengths)) if len(lengths) else 1.0
        reach.append(1.0 if share > 0.95 else share)
    return reach[0], reach[1]


def _on_image(file: RasterFile, own: GeoBox, grid: GeoBox, like: RasterFile | None) -> Alignment:
    """Align images without a CRS pixel by pixel, by their sizes alone; their transforms, if any, must not contradict it."""
    coarser = max(1, grid.shape[0] // own.shape[0])
    if tuple(grid.shape) == (own.shape[0] * coarser, own.shape[1] * coarser):
        _check_transforms(file, own, grid, like)
        return Alignment("exact", coarser=coarser)
    finer = own.shape[0] / grid.shape[0]
    hint = ""
    if finer == int(finer) and tuple(own.shape) == (grid.shape[0] * finer, grid.shape[1] * finer):
        hint = f" It is {finer:g} times finer: set `scale: {finer:g}` for the source to keep its resolution."
    raise InputError(
        f"{file}: is {own.shape[0]} x {own.shape[1]} pixels without a CRS, but the reference grid is "
        f"{grid.shape[0]} x {grid.shape[1]}; images without a CRS are aligned pixel by pixel.{hint} Otherwise crop or "
        "resample it first, or assign a CRS."
    )


def _check_transforms(file: RasterFile, own: GeoBox, grid: GeoBox, like: RasterFile | None) -> None:
    """Check that the transforms of two images of the same area, if both have one, do not place them apart.

    Steps of one pixel to the right and down are not positions: they number the pixels of an image, or of the larger one
    that it was cut from.
    """
    if any((t.a, t.b, t.d, t.e) == (1, 0, 0, 1) for t in (own.affine, grid.affine)):
        return
    corners = [(x, y) for x in (0, 1) for y in (0, 1)]
    apart = 0.0
    for x, y in corners:
        here = ~grid.affine * (own.affine * (x * own.shape[1], y * own.shape[0]))
        apart = max(apart, *(abs(a - b) for a, b in zip(here, (x * grid.shape[1], y * grid.shape[0]), strict=True)))
    if apart > CONTRADICTION:
        theirs, ours = (f"{t.c:.10g}, {t.f:.10g} with pixels of {t.a:.6g} x {t.e:.6g}" for t in (own.affine, grid.affine))
        raise InputError(
            f"{file}: has no CRS, and neither has the reference grid{'' if like is None else f', {like}'}, but their "
            f"transforms place them {apart:.3g} pixels apart: the file starts at {theirs}, the reference grid at {ours}. "
            "Assign their CRS to both, for example with `rio edit-info --crs`, to align them by position; or remove a wrong "
            "transform, for example with `gdal_edit.py -unsetgt`, to align them pixel by pixel."
        )


def _nested(own: GeoBox, grid: GeoBox) -> Alignment | None:
    """How grid pixels nest in raster pixels; None if they do not."""
    to_raster = ~own.affine * grid.affine  # grid pixels -> raster pixels
    coarser = round(1 / to_raster.a) if 0 < to_raster.a <= 1.5 else 0
    if coarser < 1:
        return None
    column, row = (round(v * coarser) for v in (to_raster.c, to_raster.f))
    wanted = Affine.scale(1 / coarser) * Affine.translation(column, row)
    rows, columns = grid.shape
    for corner in ((0, 0), (columns, 0), (0, rows), (columns, rows)):
        found, right = to_raster * corner, wanted * corner
        if max(abs(a - b) for a, b in zip(found, right, strict=True)) * coarser > CLOSE:
            return None
    if row % coarser or column % coarser:
        return None  # a raster pixel would start inside a group of grid pixels; nearest gives the same result
    return Alignment("exact", row=row // coarser, column=column // coarser, coarser=coarser)


def _check_transformable(file: RasterFile, own: GeoBox, grid: GeoBox) -> None:
    name, wanted = (engineering_name(crs.to_wkt()) for crs in (own.crs, grid.crs))
    if name != wanted:
        which = f"an engineering CRS, {name!r}" if name else f"the CRS {own.crs.proj.name}"
        others = f"is an engineering CRS, {wanted!r}" if wanted else f"is {grid.crs.proj.name}"
        raise InputError(
            f"{file}: has {which}, but that of the reference grid {others}; an engineering CRS cannot be transformed. "
            "Assign its true CRS to the file that has it, for example with `rio edit-info --crs`."
        )


def _nested_copies(own: GeoBox, grid: GeoBox, placed: list[float]) -> Alignment | None:
    """How grid pixels nest in the pixels of a raster that is repeated at each of these shifts along x; None if not."""
    nested = _nested(GeoBox(own.shape, Affine.translation(placed[0], 0) * own.affine, own.crs), grid)
    if nested is None or len(placed) == 1:
        return nested
    around = cycle(own.crs.to_wkt())
    assert around is not None, "only a CRS that wraps has several shifts"
    if own.affine.d:
        return None  # rotated: a turn is no number of columns
    turn = around.period / own.affine.a
    return replace(nested, turn=round(turn)) if abs(turn - round(turn)) * nested.coarser <= CLOSE else None


def _check_overlap(file: RasterFile, own: GeoBox, grid: GeoBox) -> list[float]:
    """The shifts along x with which the raster overlaps the grid: 0, or full turns where longitudes wrap."""
    places, placed = _places(own, grid), _shifts(own, grid)
    if placed:
        return placed
    extent = extent_of(own)
    where = "cannot be transformed to that CRS"
    if places:
        left, right = places[0].left, places[-1].right
        where = f"spans x {left:.6g} to {right:.6g}, y {places[0].bottom:.6g} to {places[0].top:.6g}"
    raise InputError(
        f"{file}: does not overlap the reference grid. In the file's CRS it spans x {extent.left:.6g} to "
        f"{extent.right:.6g}, y {extent.bottom:.6g} to {extent.top:.6g}; the grid {where}. "
        "Check the file and the scene's grid."
    )


def _places(own: GeoBox, grid: GeoBox) -> list[Extent] | None:
    """Where the grid is in the raster's CRS, not the reverse: a global file fits no projected CRS."""
    return [extent_of(grid)] if same_crs(own.crs, grid.crs) else extents_in(grid, own.crs.to_wkt())


def _shifts(own: GeoBox, grid: GeoBox) -> list[float]:
    """The shifts along x with which the raster overlaps the grid; none if it does not."""
    extent, around = extent_of(own), cycle(own.crs.to_wkt())
    return [shift for place in _places(own, grid) or () for shift in shifts(extent, place, around)]


def overlaps(header: Header, grid: GeoBox) -> bool:
    """Whether a raster overlaps a grid; it may if that cannot be determined."""
    own = header.grid
    if own.crs is None or grid.crs is None or engineering_name(own.crs.to_wkt()) or engineering_name(grid.crs.to_wkt()):
        return True
    return bool(_shifts(own, grid))


def reaches(header: Header, alignment: Alignment, grid: GeoBox, window: Window) -> bool:
    """Whether a raster has pixels in a window of the grid or close to it; if not, it need not be opened."""
    if alignment.kind != "exact":
        return any(needed for _, needed in _pieces(header, grid, window))
    rows, columns = header.grid.shape
    times = alignment.coarser
    top, left = window.y // times + alignment.row, window.x // times + alignment.column
    bottom = (window.y + window.height - 1) // times + 1 + alignment.row
    right = (window.x + window.width - 1) // times + 1 + alignment.column
    return max(top, 0) < min(bottom, rows) and bool(list(_runs(left, right, columns, alignment.turn)))


def read_aligned(
    raster: OpenRaster, alignment: Alignment, grid: GeoBox, window: Window
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read values (band, height, width) in a window of the grid, and where (height, width) all bands are valid.

    Exactly aligned values keep their dtype, resampled ones are floats. Values are undefined where there is no data.
    """
    if alignment.kind == "exact":
        return _read_exact(raster, alignment, window)
    dtype = warped_dtype(raster.header.dtypes)
    values = np.full((raster.header.bands, window.height, window.width), np.nan, dtype)
    for piece, needed in _pieces(raster.header, grid, window):
        top, left = piece.y - window.y, piece.x - window.x
        target = values[:, top : top + piece.height, left : left + piece.width]
        for part in needed:
            found = _warped(raster, alignment, grid, piece, part)
            np.copyto(target, found, where=np.isnan(target))
    return values, np.asarray(np.isfinite(values).all(axis=0))


def _read_exact(raster: OpenRaster, alignment: Alignment, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    rows, columns = raster.header.grid.shape
    times, turn = alignment.coarser, alignment.turn
    top, left = window.y // times + alignment.row, window.x // times + alignment.column
    bottom = (window.y + window.height - 1) // times + 1 + alignment.row
    right = (window.x + window.width - 1) // times + 1 + alignment.column
    upper, lower = max(top, 0), min(bottom, rows)
    runs = list(_runs(left, right, columns, turn)) if upper < lower else []
    if len(runs) == 1 and (upper, lower, runs[0].stop - runs[0].start) == (top, bottom, right - left):
        values, valid = raster.read(Window(top, runs[0].source, bottom - top, right - left))
    else:
        shape = (bottom - top, right - left)
        values = np.zeros((raster.header.bands, *shape), np.result_type(*raster.header.dtypes))
        valid = np.zeros(shape, bool)
        for run in runs:
            part = np.s_[upper - top : lower - top, run.start : run.stop]
            values[:, *part], valid[part] = raster.read(Window(upper, run.source, lower - upper, run.stop - run.start))
    if times > 1:
        y, x = window.y % times, window.x % times
        cut = np.s_[y : y + window.height, x : x + window.width]
        values = values.repeat(times, axis=1).repeat(times, axis=2)[:, *cut]
        valid = valid.repeat(times, axis=0).repeat(times, axis=1)[cut]
    return values, valid


@dataclass(frozen=True)
class _Run:
    """Columns [start, stop) of a window that are consecutive in the raster, from its column `source`."""

    start: int
    stop: int
    source: int


def _runs(left: int, right: int, columns: int, turn: int) -> Iterator[_Run]:
    """The columns from left to right (raster pixels, possibly beyond its ends) that the raster has."""
    at = left
    while at < right:
        inside = 0 <= at < columns
        source = at if inside or not turn else at % turn
        if source >= columns or source < 0:
            at = min(right, 0 if at < 0 else right) if not turn else at + turn - source
            continue
        length = min(right - at, columns - source) if inside else min(right - at, columns - source, turn - source)
        yield _Run(at - left, at - left + length, source)
        at += length


def _pieces(header: Header, grid: GeoBox, window: Window) -> Iterator[tuple[Window, list[RasterPart]]]:
    """Split a window into pieces, each with the raster windows that it needs at most; omit pieces outside the raster."""
    needed = needed_parts(header.grid, grid, window)
    if not needed:
        return
    pixels = sum(part.window.height * part.window.width for part in needed)
    if pixels * header.bands <= MAX_PIXELS_IN_MEMORY or max(window.height, window.width) <= 16:
        yield window, needed
        return
    tall = window.height >= window.width
    half = (window.height if tall else window.width) // 2
    first = Window(window.y, window.x, half if tall else window.height, window.width if tall else half)
    second = (
        Window(window.y + half, window.x, window.height - half, window.width)
        if tall
        else Window(window.y, window.x + half, window.height, window.width - half)
    )
    yield from _pieces(header, grid, first)
    yield from _pieces(header, grid, second)


def _warped(raster: OpenRaster, alignment: Alignment, grid: GeoBox, window: Window, needed: RasterPart) -> NDArray[Any]:
    extra = {"SOURCE_EXTRA": str(max(needed.window.height, needed.window.width))} if needed.jumps else {}
    with in_memory(raster, needed.window) if needed.copied else raster.dataset(needed.window) as layers:
        part = grid[window.slices]
        try:
            with WarpedVRT(
                layers.dataset,
                src_crs=needed.crs or (grid.crs.to_wkt() if engineering_name(grid.crs.to_wkt()) else None),
                crs=grid.crs.to_wkt(),
                transform=part.affine,
                height=window.height,
                width=window.width,
                resampling=Resampling[alignment.resampling],
                src_transform=Affine.translation(needed.shift, 0) * layers.dataset.transform if needed.shift else None,
                src_nodata=layers.nodata,
                nodata=np.nan,
                dtype=warped_dtype(raster.header.dtypes),
                tolerance=TOLERANCE,
                XSCALE=f"{alignment.reach[0]:.9f}",
                YSCALE=f"{alignment.reach[1]:.9f}",
                UNIFIED_SRC_NODATA="NO",  # otherwise a pixel is missing only if it is missing in all bands
                **extra,
            ) as view:
                values: NDArray[Any] = view.read(list(layers.indexes))
        except CPLE_BaseError as error:
            raise RasterioIOError(str(error)) from error
    return values
