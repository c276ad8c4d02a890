"""The grid that a scene takes from one of its sources."""

from __future__ import annotations

from collections.abc import Sequence

from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import header
from pipeline.rasters.resample import CLOSE
from pipeline.scenes.source import Source


def reference_grid(like: Source) -> GeoBox:
    """The grid of a source's first file, extended to all files of its first layer that continue its pixels: its tiles.

    For a source of scale s, each pixel covers s x s pixels of the files.

    Raises:
        InputError: a file cannot be read, or its pixels are not divisible by the scale.
    """
    own = _tiled(like.layers[0])
    if like.scale == 1:
        return own
    rows, columns = own.shape
    if rows % like.scale or columns % like.scale:
        raise InputError(
            f"{like.layers[0][0]}: is {rows} x {columns} pixels, which is not divisible into reference pixels of "
            f"{like.scale} x {like.scale}; set `grid.like` to another source, or give crs, resolution and bounds."
        )
    return GeoBox((rows // like.scale, columns // like.scale), own.affine * Affine.scale(like.scale), own.crs)


def _tiled(files: Sequence[RasterFile]) -> GeoBox:
    """The grid of the first file, extended to those that have its CRS, its resolution and its pixels' edges."""
    first = header(files[0]).grid
    left, top, right, bottom = 0, 0, first.shape[1], first.shape[0]
    for file in files[1:]:
        grid = header(file).grid
        if first.crs is None or grid.crs != first.crs:
            continue
        place = ~first.affine * grid.affine
        x, y = round(place.c), round(place.f)
        corner = place * (grid.shape[1], grid.shape[0])
        if (
            max(abs(place.c - x), abs(place.f - y)) > CLOSE
            or max(abs(corner[0] - x - grid.shape[1]), abs(corner[1] - y - grid.shape[0])) > CLOSE
        ):
            continue
        left, top = min(left, x), min(top, y)
        right, bottom = max(right, x + grid.shape[1]), max(bottom, y + grid.shape[0])
    if (left, top, right, bottom) == (0, 0, first.shape[1], first.shape[0]):
        return first
    return GeoBox((bottom - top, right - left), first.affine * Affine.translation(left, top), first.crs)
