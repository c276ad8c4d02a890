"""Align a raster with a grid, window by window: pixel by pixel where the grids nest, otherwise resampled by GDAL.

A pixel's value depends only on the two grids, not on the requested window (except for the last bit where grids are
rotated): coordinates are transformed exactly. GDAL's default tolerance is an eighth of a pixel, with a different error in
each window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform, transform_bounds

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import Header, OpenRaster, RasterFile, warped_dtype

#: Grids nest if no corner is off by more than this fraction of a pixel.
CLOSE = 1e-2
#: Error tolerance in pixels of GDAL's coordinate transforms. Not 0, which a warped VRT rejects.
TOLERANCE = 1e-6
#: Maximum values (pixels x bands) of a raster held in memory to resample one piece of a window.
MAX_PIXELS_IN_MEMORY = 1 << 24
Kind = Literal["exact", "resampled"]


@dataclass(frozen=True)
class Alignment:
    """How a raster maps onto a grid.

    Exact: grid pixel (y, x) is raster pixel (y // coarser + row, x // coarser + column); no value is interpolated.
    """

    kind: Kind
    row: int = 0
    column: int = 0
    coarser: int = 1  #: grid pixels per raster pixel along an axis
    resampling: str = "nearest"
    #: Grid pixels per raster pixel along x and y, at most 1; sets the kernel's extent. GDAL would derive it from each
    #: window separately.
    reach: tuple[float, float] = (1.0, 1.0)

    @property
    def interpolates(self) -> bool:
        """Whether the output has values that the raster does not contain."""
        return self.kind == "resampled" and self.resampling not in ("nearest", "mode", "min", "max", "med")

    def __str__(self) -> str:
        if self.kind == "resampled":
            return f"resampled, {self.resampling}"
        return "exact" if self.coarser == 1 else f"exact, each pixel repeated {self.coarser} x {self.coarser} times"


def align(file: RasterFile, header: Header, grid: GeoBox, *, resampling: str | None) -> Alignment:
    """Determine how a raster maps onto a grid: exactly where they nest, else by `resampling` (None: bilinear).

    With a method other than nearest, a coarser raster is resampled even if each of its pixels covers complete grid pixels.

    Raises:
        InputError: the raster cannot be transformed to the grid, or does not overlap it.
    """
    own = header.grid
    if own.crs is None and grid.crs is None:
        return _on_image(file, own, grid)
    if own.crs is None or grid.crs is None:
        which = "has no CRS" if own.crs is None else "has a CRS but the reference grid has none"
        raise InputError(
            f"{file}: {which}, and its grid ({own.shape[0]} x {own.shape[1]} pixels) differs from the reference grid "
            f"({grid.shape[0]} x {grid.shape[1]}); assign a CRS first, for example with `rio edit-info --crs`."
        )
    _check_overlap(file, own, grid)
    if own.crs == grid.crs:
        nested = _nested(own, grid)
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
        found = transform(grid.crs.to_wkt(), header.grid.crs.to_wkt(), *zip(*points, strict=True))
        steps.append(np.array([~header.grid.affine * point for point in zip(*found, strict=True)]))
    reach = []
    for step in steps[1:]:
        lengths = np.hypot(*(step - steps[0]).T)
        lengths = lengths[np.isfinite(lengths) & (lengths > 0)]
        share = float(np.median(1 / lengths)) if len(lengths) else 1.0
        reach.append(1.0 if share > 0.95 else share)
    return reach[0], reach[1]


def _on_image(file: RasterFile, own: GeoBox, grid: GeoBox) -> Alignment:
    """Align images without a CRS pixel by pixel, by their sizes alone; their transforms, if any, are ignored."""
    if own.shape == grid.shape:
        return Alignment("exact")
    coarser = grid.shape[0] // own.shape[0]
    if coarser > 1 and tuple(grid.shape) == (own.shape[0] * coarser, own.shape[1] * coarser):
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


def _check_overlap(file: RasterFile, own: GeoBox, grid: GeoBox) -> None:
    # Transform the grid to the file's CRS, not the reverse: a global file fits no projected CRS.
    inside = _extent_in(grid, own.crs.to_wkt())
    extent = own.boundingbox
    if inside is not None and (
        inside[0] < extent.right and extent.left < inside[2] and inside[1] < extent.top and extent.bottom < inside[3]
    ):
        return
    where = "cannot be transformed to that CRS"
    if inside is not None:
        where = f"spans x {inside[0]:.6g} to {inside[2]:.6g}, y {inside[1]:.6g} to {inside[3]:.6g}"
    raise InputError(
        f"{file}: does not overlap the reference grid. In the file's CRS it spans x {extent.left:.6g} to "
        f"{extent.right:.6g}, y {extent.bottom:.6g} to {extent.top:.6g}; the grid {where}. "
        "Check the file and the scene's grid."
    )


def _extent_in(grid: GeoBox, crs: str) -> tuple[float, float, float, float] | None:
    """Left, bottom, right and top of a grid in another CRS; None if it cannot be transformed."""
    box = grid.boundingbox
    try:
        left, bottom, right, top = transform_bounds(grid.crs.to_wkt(), crs, *box, densify_pts=21)
    except CPLE_BaseError:
        return None
    if not np.isfinite([left, bottom, right, top]).all():
        return None
    if left > right:  # crosses the antimeridian: unbounded along x
        left, right = -math.inf, math.inf
    return left, bottom, right, top


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
        values[:, top : top + piece.height, left : left + piece.width] = _warped(raster, alignment, grid, piece, needed)
    return values, np.asarray(np.isfinite(values).all(axis=0))


def _read_exact(raster: OpenRaster, alignment: Alignment, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    rows, columns = raster.header.grid.shape
    times = alignment.coarser
    top, left = window.y // times + alignment.row, window.x // times + alignment.column
    bottom = (window.y + window.height - 1) // times + 1 + alignment.row
    right = (window.x + window.width - 1) // times + 1 + alignment.column
    inside = (max(top, 0), max(left, 0), min(bottom, rows), min(right, columns))
    shape = (window.height, window.width)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return np.zeros((raster.header.bands, *shape), np.result_type(*raster.header.dtypes)), np.zeros(shape, bool)
    values, valid = raster.read(Window(inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]))
    if inside != (top, left, bottom, right):
        around = ((inside[0] - top, bottom - inside[2]), (inside[1] - left, right - inside[3]))
        values, valid = np.pad(values, ((0, 0), *around)), np.pad(valid, around)
    if times > 1:
        y, x = window.y % times, window.x % times
        cut = np.s_[y : y + window.height, x : x + window.width]
        values = values.repeat(times, axis=1).repeat(times, axis=2)[:, *cut]
        valid = valid.repeat(times, axis=0).repeat(times, axis=1)[cut]
    return values, valid


def _pieces(header: Header, grid: GeoBox, window: Window) -> Iterator[tuple[Window, Window]]:
    """Split a window into pieces, each with the raster window that it needs at most; omit pieces outside the raster."""
    needed = _needed(header, grid, window)
    if needed is None:
        return
    if needed.height * needed.width * header.bands <= MAX_PIXELS_IN_MEMORY or max(window.height, window.width) <= 16:
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


def _needed(header: Header, grid: GeoBox, window: Window) -> Window | None:
    """The raster window that covers a grid window, with a margin for any kernel; None if it is outside the raster."""
    rows, columns = header.grid.shape
    span = _span(header.grid, grid, window)
    if span is None:
        return Window(0, 0, rows, columns)
    left, top, right, bottom = span
    # Kernels extend up to 3 pixels (Lanczos) of the coarser of the two grids.
    room_x = 3 * max(1.0, (right - left) / window.width) + 2
    room_y = 3 * max(1.0, (bottom - top) / window.height) + 2
    y, x = max(0, math.floor(top - room_y)), max(0, math.floor(left - room_x))
    height, width = min(rows, math.ceil(bottom + room_y)) - y, min(columns, math.ceil(right + room_x)) - x
    return Window(y, x, height, width) if height > 0 and width > 0 else None


def _span(own: GeoBox, grid: GeoBox, window: Window) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of a grid window in pixels of another grid; None if that cannot be determined."""
    extent = _extent_in(grid[window.slices], own.crs.to_wkt())
    if extent is None or math.isinf(extent[0]):
        return None
    left, bottom, right, top = extent
    corners = [~own.affine * (x, y) for x in (left, right) for y in (bottom, top)]
    x, y = zip(*corners, strict=True)
    return min(x), min(y), max(x), max(y)


def _warped(raster: OpenRaster, alignment: Alignment, grid: GeoBox, window: Window, needed: Window) -> NDArray[Any]:
    with raster.dataset(needed) as layers:
        part = grid[window.slices]
        try:
            with WarpedVRT(
                layers.dataset,
                crs=grid.crs.to_wkt(),
                transform=part.affine,
                height=window.height,
                width=window.width,
                resampling=Resampling[alignment.resampling],
                src_nodata=layers.nodata,
                nodata=np.nan,
                dtype=warped_dtype(raster.header.dtypes),
                tolerance=TOLERANCE,
                XSCALE=f"{alignment.reach[0]:.9f}",
                YSCALE=f"{alignment.reach[1]:.9f}",
                UNIFIED_SRC_NODATA="NO",  # otherwise a pixel is missing only if it is missing in all bands
            ) as view:
                values: NDArray[Any] = view.read(list(layers.indexes))
        except CPLE_BaseError as error:
            raise RasterioIOError(str(error)) from error
    return values
