"""List the arrays of a MATLAB, Zarr, NetCDF or HDF5 file that holds several. Reads only headers."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import h5py
import scipy.io
from rasterio.errors import RasterioIOError
from scipy.io.matlab import MatReadError

from mibf.errors import InputError
from pipeline.io import gdal, storage, zarr_store
from pipeline.rasters.untrusted import check_hdf5, open_dataset

#: Ends of the names of NetCDF and HDF5 files, which GDAL reads.
GDAL_CONTAINERS = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5")
#: Ends of the names of all files that hold arrays by name.
CONTAINERS = (".mat", ".zarr", *GDAL_CONTAINERS)


@dataclass(frozen=True)
class Variable:
    """An array of a file, which may be a raster: of two or three axes."""

    name: str
    shape: tuple[int, ...] | None = None  #: as the file's own tools show it; None where GDAL lists the names alone


def list_variables(url: str) -> list[Variable]:
    """List the arrays of a file that holds several; empty where GDAL opens the file without a name.

    Raises:
        InputError: the file cannot be read.
    """
    path = url.rstrip("/").lower()
    if path.endswith(".mat"):
        return _matlab_variables(url)
    if path.endswith(".zarr"):
        return _zarr_variables(url)
    return _gdal_variables(url) if path.endswith(GDAL_CONTAINERS) else []


def _matlab_variables(url: str) -> list[Variable]:
    filesystem, path = storage.open_url(url)
    try:
        with filesystem.open(path, "rb") as handle:
            try:
                found = [(str(name), tuple(shape)) for name, shape, kind in scipy.io.whosmat(handle) if kind != "char"]
            except NotImplementedError:  # version 7.3, which is HDF5 with the axes the other way round
                with h5py.File(handle, "r") as file:
                    check_hdf5(url, file)
                    arrays = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
                    found = [(name, tuple(array.shape[::-1])) for name, array in arrays.items()]
    except FileNotFoundError as error:
        raise InputError(f"{storage.redact_url(url)}: no such file; check the path.") from error
    except (OSError, ValueError, TypeError, zlib.error, MatReadError) as error:
        raise InputError(f"{storage.redact_url(url)}: cannot be read as a MATLAB file ({error}).") from error
    return [Variable(name, shape) for name, shape in found if _is_raster(shape)]


def _zarr_variables(url: str) -> list[Variable]:
    try:
        arrays = dict(zarr_store.open_zarr(url).arrays())
    except Exception as error:  # zarr has many for metadata that are damaged
        raise InputError(
            f"{storage.redact_url(url)}: cannot be opened as a Zarr group ({type(error).__name__}: {error})."
        ) from error
    return [Variable(name, array.shape) for name, array in sorted(arrays.items()) if _is_raster(array.shape)]


def _gdal_variables(url: str) -> list[Variable]:
    gdal.configure_gdal()
    try:
        with open_dataset(url, gdal.gdal_path(url)) as dataset:
            names = [] if dataset.count else [name.rsplit(":", 1)[-1].strip("/") for name in dataset.subdatasets]
    except RasterioIOError as error:
        raise InputError(
            f"{storage.redact_url(url)}: cannot be read as a raster ({storage.without_queries(str(error))})."
        ) from error
    return [Variable(name) for name in names]


def _is_raster(shape: tuple[int, ...]) -> bool:
    """Whether an array may be an image: two or three axes, of which two at least are longer than a single value."""
    return len(shape) in (2, 3) and sum(size > 1 for size in shape) >= 2
