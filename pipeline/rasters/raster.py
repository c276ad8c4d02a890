"""Read a raster window by window: a file that GDAL opens, or an array of a Zarr, NetCDF, HDF5 or MATLAB file.

Every format yields values (band, y, x), a validity mask and a georeferenced grid. Encoded values are compared with nodata
as stored, then decoded; resampling sees decoded values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.decoding.encodings import ALPHAEARTH_NODATA, INT8_ENCODINGS, alphaearth, tessera
from pipeline.grid import Window, padded
from pipeline.io import checksums
from pipeline.io.sidecars import Listings
from pipeline.rasters.gdal_raster import GdalRaster, open_gdal
from pipeline.rasters.header import GdalBands, Header, OpenRaster, RasterFile, in_memory
from pipeline.rasters.longitude import same_crs
from pipeline.rasters.matlab_raster import open_matlab
from pipeline.rasters.named_arrays import is_zarr, named_array_file, open_container, open_zarr_raster
from pipeline.rasters.resample import CLOSE, Alignment, align, reaches, read_aligned


@contextmanager
def open_raster(file: RasterFile) -> Iterator[OpenRaster]:
    """Open a raster with the reader for its format, and decode its values as declared.

    Raises:
        InputError: the file is missing, cannot be read, or lacks a requested variable or band; or its values are not what
            its encoding stores.
    """
    with ExitStack() as opened:
        stored = opened.enter_context(_open_stored(file))
        if file.decode is None:
            yield stored
            return
        scales = None if file.scales is None else opened.enter_context(_open_stored(_selected(file, stored.header)))
        yield DecodedRaster(file, stored, scales)


@contextmanager
def _open_stored(file: RasterFile) -> Iterator[OpenRaster]:
    """Open a raster whose values are read as stored, except for a scale and offset to be applied."""
    if file.url.split("?")[0].lower().endswith(".mat"):
        yield open_matlab(file)
    elif is_zarr(file.url):
        yield open_zarr_raster(file)
    elif (named := named_array_file(file)) is not None:
        with open_container(named) as raster:
            yield raster
    else:
        with open_gdal(file) as opened:
            yield opened


class DecodedRaster:
    """A raster whose stored values are decoded after they are read.

    Rows of a georeferenced file that run from south to north, as AlphaEarth's do, are turned, so that they nest in a grid.
    """

    def __init__(self, file: RasterFile, stored: OpenRaster, scales: OpenRaster | None) -> None:
        self.file, self._stored, self._scales = file, stored, scales
        head = stored.header
        if file.decode in INT8_ENCODINGS:
            wrong = next((dtype for dtype in head.dtypes if dtype != "int8"), None)
            if wrong is not None:
                raise InputError(
                    f"{file}: holds {wrong}, but `decode: {file.decode}` is of int8 values; leave out `decode` for values "
                    "that are decoded already."
                )
            head = replace(head, dtypes=("float32",) * head.bands)
        if scales is not None:
            _check_grid(file, head, scales.header)
        place = head.grid.affine
        self._turned = head.grid.crs is not None and place.e > 0 and place.b == place.d == 0
        if self._turned:
            rows = head.grid.shape[0]
            north_up = place * Affine.translation(0, rows) * Affine.scale(1, -1)
            head = replace(head, grid=GeoBox(head.grid.shape, north_up, head.grid.crs))
        self.header = head

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `OpenRaster.read`."""
        if not self._turned:
            return self._decoded(window)
        first = self.header.grid.shape[0] - window.y - window.height
        values, valid = self._decoded(replace(window, y=first))
        return np.ascontiguousarray(values[:, ::-1]), np.ascontiguousarray(valid[::-1])

    def _decoded(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Decoded values and validity of a window of the raster as it is stored."""
        values, valid = self._stored.read(window)
        if self.file.decode == "alphaearth":
            return alphaearth(values), valid & (values != ALPHAEARTH_NODATA).all(axis=0)
        if self._scales is None:  # power, of which there is none where it is not above 0
            return values, valid & (values > 0).all(axis=0)
        scales, there = self._scales.read(window)
        decoded = tessera(values, scales)
        return decoded, valid & there & np.isfinite(decoded).all(axis=0)

    def dataset(self, window: Window) -> AbstractContextManager[GdalBands]:
        """See `OpenRaster.dataset`."""
        return in_memory(self, window)


def _selected(file: RasterFile, head: Header) -> RasterFile:
    """The scales of a file's selected bands: those of the same numbers, or the only one for all."""
    assert file.scales is not None
    found = header(file.scales).file_bands
    if found not in (1, head.file_bands):
        raise InputError(
            f"{file.scales}: has {found} bands of scales for the {head.file_bands} bands of {file}; there must be one, or "
            "as many as the embedding has."
        )
    return replace(file.scales, bands=None if found == 1 else file.bands)


def _check_grid(file: RasterFile, head: Header, scales: Header) -> None:
    """Check that scales are on the grid of their raster, pixel by pixel."""
    own, other = head.grid, scales.grid
    same = own.crs is None if other.crs is None else own.crs is not None and same_crs(own.crs, other.crs)
    if same and own.shape == other.shape:
        corners = [(x, y) for x in (0, own.shape[1]) for y in (0, own.shape[0])]
        places = [(corner, ~own.affine * (other.affine * corner)) for corner in corners]
        if all(max(abs(x - left), abs(y - top)) <= CLOSE for (x, y), (left, top) in places):
            return
    described = [
        f"{grid.shape[0]} x {grid.shape[1]} pixels of {grid.affine.a:.6g} x {grid.affine.e:.6g} from "
        f"{grid.affine.c:.10g}, {grid.affine.f:.10g} ({'no CRS' if grid.crs is None else grid.crs.proj.name})"
        for grid in (other, own)
    ]
    raise InputError(
        f"{file.scales}: the scales of {file} must be on its grid, pixel by pixel, but they are {described[0]}, and the "
        f"embedding is {described[1]}; give the scales that belong to the file."
    )


@lru_cache(maxsize=4096)
def _read_header(file: RasterFile) -> Header:
    """A raster's metadata. The file's stamp is part of the cache key: it changes when the file does."""
    with _open_stored(file) as stored:
        if isinstance(stored, GdalRaster):
            stored.check_complete()
        if file.decode is None:
            return stored.header
    with open_raster(file) as decoded:
        return decoded.header


def stamped(file: RasterFile, listings: Listings | None = None) -> RasterFile:
    """The raster with its current stamp, so that every process that opens it reads its current content.

    `listings` are shared by calls for several files of a folder.

    Raises:
        InputError: the file is missing or cannot be reached.
    """
    if file.stamp:
        return file
    scales = None if file.scales is None else stamped(file.scales, listings)
    return replace(file, stamp=checksums.input_fingerprint(file.url, listings), scales=scales)


def header(file: RasterFile) -> Header:
    """Read the metadata of a raster; cached until the file changes.

    Raises:
        InputError: as `open_raster`.
    """
    return _read_header(stamped(file))


@dataclass(frozen=True)
class AlignedFile:
    """One file of a source and its alignment with the grid."""

    file: RasterFile
    header: Header
    alignment: Alignment
    position: int = 0  #: in its layer as declared
    mask: AlignedFile | None = None
    margin: int = 0  #: pixels by which the alignment is known beyond the grid on every side

    def read(self, grid: GeoBox, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window of the grid, which may begin or end beyond it by the margin, as `read_aligned`."""
        with open_raster(self.file) as raster:
            return read_aligned(raster, self.alignment, *self._placed(grid, window))

    def reaches(self, grid: GeoBox, window: Window) -> bool:
        """Whether the file has pixels in a window of the grid or close to it; if not, it need not be opened."""
        return reaches(self.header, self.alignment, *self._placed(grid, window))

    def _placed(self, grid: GeoBox, window: Window) -> tuple[GeoBox, Window]:
        """The grid of the alignment, and the window in it."""
        by = self.margin
        return padded(grid, by), Window(window.y + by, window.x + by, window.height, window.width)


def align_file(
    file: RasterFile, grid: GeoBox, resampling: str | None, like: RasterFile | None, margin: int = 0
) -> AlignedFile:
    """Align a file with a grid, and by a margin beyond it, as `align`.

    Raises:
        InputError: the file cannot be used, or not on this grid.
    """
    head = header(file)
    found = align(file, head, padded(grid, margin), resampling=resampling, like=like)
    return AlignedFile(file, head, found, margin=margin)
