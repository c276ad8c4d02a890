"""Read a raster window by window: a file that GDAL opens, or an array of a Zarr, NetCDF, HDF5 or MATLAB file.

Every format yields values (band, y, x), a validity mask and a georeferenced grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

from pipeline.io import checksums
from pipeline.io.sidecars import Listings
from pipeline.rasters.gdal_raster import GdalRaster, open_gdal
from pipeline.rasters.header import Header, OpenRaster, RasterFile
from pipeline.rasters.matlab_raster import open_matlab
from pipeline.rasters.named_arrays import is_zarr, named_array_file, open_container, open_zarr_raster


@contextmanager
def open_raster(file: RasterFile) -> Iterator[OpenRaster]:
    """Open a raster with the reader for its format.

    Raises:
        InputError: the file is missing, cannot be read, or lacks a requested variable or band.
    """
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


@lru_cache(maxsize=4096)
def _read_header(file: RasterFile) -> Header:
    """A raster's metadata. The file's stamp is part of the cache key: it changes when the file does."""
    with open_raster(file) as opened:
        if isinstance(opened, GdalRaster):
            opened.check_complete()
        return opened.header


def stamped(file: RasterFile, listings: Listings | None = None) -> RasterFile:
    """The raster with its current stamp, so that every process that opens it reads its current content.

    `listings` are shared by calls for several files of a folder.

    Raises:
        InputError: the file is missing or cannot be reached.
    """
    return file if file.stamp else replace(file, stamp=checksums.input_fingerprint(file.url, listings))


def header(file: RasterFile) -> Header:
    """Read the metadata of a raster; cached until the file changes.

    Raises:
        InputError: as `open_raster`.
    """
    return _read_header(stamped(file))
