"""List the arrays of a MATLAB, Zarr, NetCDF or HDF5 file that holds several. Reads only headers, except of MATLAB files."""

from __future__ import annotations

from dataclasses import dataclass

import zarr
from rasterio.errors import RasterioIOError

from mibf.errors import InputError
from pipeline.io import checksums, gdal, storage, zarr_store
from pipeline.rasters.gdal_raster import subdataset_name
from pipeline.rasters.matlab_raster import matlab_arrays
from pipeline.rasters.named_arrays import HDF5_ENDS, NETCDF_ENDS, ZARR_ENDS, is_zarr
from pipeline.rasters.untrusted import open_dataset

#: Ends of the names of NetCDF and HDF5 files and GeoPackages, which GDAL reads.
GDAL_CONTAINERS = (*NETCDF_ENDS, *HDF5_ENDS, ".gpkg")
#: Ends of the names of all files that hold arrays by name.
CONTAINERS = (".mat", *ZARR_ENDS, *GDAL_CONTAINERS)


@dataclass(frozen=True)
class Variable:
    """An array of a file, which may be a raster: of two to four axes."""

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
    if is_zarr(url):
        return _zarr_variables(url)
    return _gdal_variables(url) if path.endswith(GDAL_CONTAINERS) else []


def _matlab_variables(url: str) -> list[Variable]:
    # Fields of structs are only known when the file is read; it is kept for reading pixels.
    arrays = matlab_arrays(url, checksums.input_fingerprint(url))
    return [Variable(name, tuple(array.shape)) for name, array in arrays.items() if _is_raster(array.shape)]


def _zarr_variables(url: str) -> list[Variable]:
    try:
        members = zarr_store.open_zarr(url).members(max_depth=None)
        arrays = {name: item for name, item in members if isinstance(item, zarr.Array)}
    except Exception as error:  # zarr has many for metadata that are damaged
        raise InputError(
            f"{storage.redact_url(url)}: cannot be opened as a Zarr group ({type(error).__name__}: {error})."
        ) from error
    return [Variable(name, array.shape) for name, array in sorted(arrays.items()) if _is_raster(array.shape)]


def _gdal_variables(url: str) -> list[Variable]:
    gdal.configure_gdal()
    gdal.forget_other_versions(gdal.gdal_path(url), None)
    try:
        with open_dataset(url, gdal.gdal_path(url)) as dataset:
            names = [] if dataset.count else [subdataset_name(name) for name in dataset.subdatasets]
    except RasterioIOError as error:
        raise InputError(
            f"{storage.redact_url(url)}: cannot be read as a raster ({storage.without_queries(str(error))})."
        ) from error
    return [Variable(name) for name in names]


def _is_raster(shape: tuple[int, ...]) -> bool:
    """Whether an array may be an image: two to four axes, of which two at least are longer than a single value."""
    return len(shape) in (2, 3, 4) and sum(size > 1 for size in shape) >= 2
