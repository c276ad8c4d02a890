"""Arrays of Zarr stores, NetCDF and HDF5 files as rasters, placed by their dimensions, coordinates and attributes."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import xarray as xr
import zarr
from affine import Affine
from rasterio.errors import RasterioIOError

from mibf.errors import InputError
from pipeline.io import checksums, gdal, storage, zarr_store
from pipeline.rasters.array_raster import ArrayRaster, open_array
from pipeline.rasters.gdal_raster import gdal_name
from pipeline.rasters.header import RasterFile
from pipeline.rasters.placement import Coordinate, NamedArray, named_axes
from pipeline.rasters.untrusted import check_hdf5, open_dataset

#: Objects that a Zarr store has at its root, one of them.
ZARR_ROOTS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
#: Ends of the names of Zarr stores; others are recognized by what they contain.
ZARR_ENDS = (".zarr", ".zarr.zip")
#: Ends of the names of NetCDF and HDF5 files.
NETCDF_ENDS = (".nc", ".nc4", ".cdf")
HDF5_ENDS = (".h5", ".hdf5", ".he5")
#: What NetCDF writes where nothing was written, by type; bytes have none (netcdf.h, NC_FILL_...).
NETCDF_FILLS = {
    "int16": -32767, "uint16": 65535, "int32": -2147483647, "uint32": 4294967295, "int64": -9223372036854775806,
    "uint64": 18446744073709551614, "float32": 9.9692099683868690e36, "float64": 9.9692099683868690e36,
}  # fmt: skip  # a table
#: Attributes by which GDAL's NetCDF driver replaces values, or fails at a signed fill value of unsigned ones.
REINTERPRETED = {"valid_range", "valid_min", "valid_max", "_Unsigned"}
#: Attributes with which HDF5 and NetCDF-4 link variables and dimensions.
_HDF5_LINKS = {"DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "_Netcdf4Dimid", "_Netcdf4Coordinates"}


def is_zarr(url: str) -> bool:
    """Whether a Zarr store is at a URL: by its name, or, if that has no extension or is a local folder, by its contents."""
    path = url.split("?")[0].rstrip("/")
    if path.lower().endswith(ZARR_ENDS):
        return True
    if storage.is_local(url):
        filesystem, local = storage.open_url(url)
        return bool(filesystem.isdir(local)) and any(filesystem.exists(posixpath.join(local, name)) for name in ZARR_ROOTS)
    if "." in posixpath.basename(path):
        return False
    filesystem, remote = storage.open_url(url)
    return any(filesystem.exists(f"{remote.rstrip('/')}/{name}") for name in ZARR_ROOTS)


# --- Zarr ---


def open_zarr_raster(file: RasterFile) -> ArrayRaster:
    """Open an array of a Zarr group, which `variable` selects, or a store that is an array itself.

    Raises:
        InputError: the store cannot be opened or has no such array, or the array cannot be placed.
    """
    try:
        options = storage.store_options(file.url) or None
        root = zarr.open(store=zarr_store.zarr_location(file.url), mode="r", storage_options=options)
        node, groups = _zarr_array(file, root)
        array = None if node is None else _named_zarr(node, groups)
    except InputError:
        raise
    except Exception as error:  # zarr raises many types for invalid metadata
        raise InputError(f"{file}: cannot be opened as a Zarr group ({type(error).__name__}: {error}).") from error
    if array is None:
        raise InputError(f"{file.url}: has no array {file.variable!r}; it has {_zarr_names(root)}.")
    return open_array(file, array)


def _zarr_array(file: RasterFile, root: zarr.Group | zarr.Array[Any]) -> tuple[zarr.Array[Any] | None, list[zarr.Group]]:
    """The array that a file names, None if there is none, and its groups from the inside out."""
    if isinstance(root, zarr.Array):
        return (root if file.variable is None else None), []
    if file.variable is None:
        raise InputError(f"{file.url}: is a Zarr group; select the array with `variable`.")
    *path, name = file.variable.strip("/").split("/")
    groups = [root]
    for part in path:
        found = groups[0].get(part)
        if not isinstance(found, zarr.Group):
            return None, groups
        groups.insert(0, found)
    node = groups[0].get(name)
    return (node if isinstance(node, zarr.Array) else None), groups


def _zarr_names(root: zarr.Group | zarr.Array[Any]) -> str:
    if isinstance(root, zarr.Array):
        return "a single array; leave out `variable`"
    try:
        return (
            ", ".join(sorted(name for name, item in root.members(max_depth=None) if isinstance(item, zarr.Array))) or "none"
        )
    except Exception:  # a store on the web cannot be listed
        return "others, which cannot be listed"


def _named_zarr(node: zarr.Array[Any], groups: list[zarr.Group]) -> NamedArray:
    attributes: dict[str, Any] = dict(node.attrs)
    dims: Any = getattr(node.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS")
    if dims is None and isinstance(attributes.get("_NCZARR_ARRAY"), Mapping):
        dims = [posixpath.basename(name) for name in attributes["_NCZARR_ARRAY"].get("dimrefs", ())]
    if dims is None or len(dims) != node.ndim:
        dims = (None,) * node.ndim
    # Version 2 has no other place for nodata, as xarray reads it; in version 3, 0 is what no one chose.
    fill = None if node.fill_value is None else np.asarray(node.fill_value).item()
    if fill is not None and node.dtype.kind != "b" and (node.metadata.zarr_format == 2 or fill != 0):
        attributes.setdefault("_FillValue", fill)
    coordinates = {}
    for dim, size in zip(dims, node.shape, strict=True):
        known = None if dim is None else _zarr_member(groups, str(dim))
        if known is not None and known.shape == (size,):
            coordinates[str(dim)] = Coordinate(np.asarray(known[:]), dict(known.attrs))
    mapping = str(attributes.get("grid_mapping", "spatial_ref")).split(":")[0].split()
    crs = _zarr_member(groups, mapping[0]) if mapping else None
    return NamedArray(
        node,
        tuple(None if dim is None else str(dim) for dim in dims),
        coordinates,
        (attributes, *(dict(group.attrs) for group in groups), *_product_attributes(groups)),
        {} if crs is None else dict(crs.attrs),
        tuple(node.shards or node.chunks),
    )


def _zarr_member(groups: list[zarr.Group], name: str) -> zarr.Array[Any] | None:
    """The array of a name in the innermost group that has one."""
    found = (group.get(name) for group in groups)
    return next((item for item in found if isinstance(item, zarr.Array)), None)


def _product_attributes(groups: list[zarr.Group]) -> list[Mapping[str, Any]]:
    """The attributes of the STAC item that the root group of an EOPF product has."""
    item = groups[-1].attrs.get("stac_discovery") if groups else None
    properties = item.get("properties") if isinstance(item, Mapping) else None
    return (
        [{k: v for k, v in properties.items() if k in ("proj:code", "proj:epsg")}] if isinstance(properties, Mapping) else []
    )


# --- NetCDF and HDF5 ---


def named_array_file(file: RasterFile) -> RasterFile | None:
    """The file, with its variable, if it is to be read by `open_container`; None if GDAL reads it.

    GDAL reads what it can place by itself. It knows no order of axes but (band, y, x), turns NetCDF variables that it cannot
    place upside down, reads HDF5 arrays of four axes as zeros, and replaces NaN and values outside the valid range in NetCDF
    by the file's nodata value, or 0.

    Raises:
        InputError: the file does not exist, or cannot be read as `axes` or `select` require.
    """
    if not file.url.split("?")[0].lower().endswith((*NETCDF_ENDS, *HDF5_ENDS)):
        return None
    explicit = file.axes is not None or bool(file.select)
    stamp = file.stamp or checksums.input_fingerprint(file.url)
    name = _array_name(RasterFile(file.url, file.variable, nodata=file.nodata), explicit, stamp)
    return None if name is None else replace(file, variable=name)


@lru_cache(maxsize=1024)
def _array_name(file: RasterFile, explicit: bool, stamp: str) -> str | None:
    gdal.forget_other_versions(gdal.gdal_path(file.url), stamp)
    opened = None if explicit else _opened_by_gdal(file)
    if opened is not None and opened[0] and file.variable is None and not opened[1]:
        return None
    try:
        with _container(file.url) as container:
            if isinstance(container, h5py.File):
                check_hdf5(file.url, container)
            found = file.variable or (opened[1] if opened else None) or _only_variable(container)
            array = None if found is None else _named(container, found, file.url)
            placed_by_gdal = opened is not None and opened[0] and array is not None and _gdal_order(array, file.url)
            return None if array is None or placed_by_gdal else found
    except _NoContainerError as error:
        if explicit or (opened is not None and not opened[0]):
            raise InputError(f"{file}: {error}; copy it to a disk as NetCDF-4, for example with `nccopy -k nc4`.") from error
        return None


def _opened_by_gdal(file: RasterFile) -> tuple[bool, str | None] | None:
    """Whether GDAL reads a variable as it is, and its name if known; None if GDAL does not open it."""
    gdal.configure_gdal()
    try:
        with open_dataset(file.url, gdal_name(file)) as dataset:
            if dataset.count == 0:
                return None
            # Without a CRS only the order of pixels counts, and GDAL leaves columns that run to the west as they are.
            mirrored = dataset.crs is None and dataset.transform.a < 0
            placed = (dataset.transform != Affine.identity() and not mirrored) or bool(dataset.gcps[0])
            floating = dataset.driver == "netCDF" and dataset.dtypes[0].startswith("float")
            replaced = floating and (dataset.nodatavals[0] is None or file.nodata is not None)
            tags = dataset.tags(1)
            reinterpreted = dataset.driver == "netCDF" and bool(REINTERPRETED & tags.keys())
            return placed and not replaced and not reinterpreted, tags.get("NETCDF_VARNAME")
    except RasterioIOError:
        return None


def _gdal_order(array: NamedArray, url: str) -> bool:
    """Whether an array has the only order of axes that GDAL knows: other axes, which become bands, then y and x."""
    names = named_axes(array)
    known = len(names) <= 3 or url.split("?")[0].lower().endswith(NETCDF_ENDS)
    return known and (not {"y", "x"} <= {*names} or names[-2:] == ("y", "x"))


class _NoContainerError(Exception):
    """A file that is neither HDF5 nor a local NetCDF file of version 3."""


@contextmanager
def _container(url: str) -> Iterator[h5py.File | xr.Dataset]:
    """Open a NetCDF or HDF5 file; its arrays are read when they are indexed."""
    filesystem, path = storage.open_url(url)
    with filesystem.open(path, "rb") as handle:
        classic = handle.read(3) == b"CDF"
        if not classic:
            handle.seek(0)
            try:
                container = h5py.File(handle, "r")
            except OSError as error:
                raise _NoContainerError("cannot be read as HDF5") from error
            with container:
                yield container
            return
    if not storage.is_local(url):
        raise _NoContainerError("is a NetCDF file of version 3 that is not on a disk")
    try:
        opened = xr.open_dataset(
            storage.local_path(url),
            engine="scipy",
            mask_and_scale=False,
            decode_times=False,
            decode_coords=False,
            cache=False,
        )
    except (TypeError, ValueError, OSError) as error:
        raise _NoContainerError(f"cannot be read as NetCDF version 3 ({error})") from error
    with opened:
        yield opened


@contextmanager
def open_container(file: RasterFile) -> Iterator[ArrayRaster]:
    """Open a variable of a NetCDF or HDF5 file for as long as the context lasts, as `named_array_file` selected it."""
    assert file.variable is not None
    try:
        with _container(file.url) as container:
            array = _named(container, file.variable, file.url)
            if array is None:
                raise InputError(f"{file}: has no variable of this name with two or more axes.")
            yield open_array(file, array)
    except _NoContainerError as error:
        raise InputError(f"{file}: {error}.") from error


def _only_variable(container: h5py.File | xr.Dataset) -> str | None:
    """The name of the only variable with two or more axes."""
    names: list[str] = []
    if isinstance(container, xr.Dataset):
        names = [str(name) for name, variable in container.variables.items() if variable.ndim >= 2]
    else:
        container.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) and item.ndim >= 2 else None
        )
    return names[0] if len(names) == 1 else None


def _named(container: h5py.File | xr.Dataset, name: str, url: str) -> NamedArray | None:
    if isinstance(container, xr.Dataset):
        found = container.variables.get(name.strip("/"))
        array = None if found is None or found.ndim < 2 else _named_netcdf(container, found)
    else:
        node = container.get(name)
        array = _named_hdf5(node) if isinstance(node, h5py.Dataset) and node.ndim >= 2 else None
    if array is None or not url.split("?")[0].lower().endswith(NETCDF_ENDS):
        return array
    return replace(array, unwritten=NETCDF_FILLS.get(np.dtype(array.values.dtype).newbyteorder("=").name))


def _named_netcdf(container: xr.Dataset, found: xr.Variable) -> NamedArray:
    coordinates = {}
    for dim in found.dims:
        known = container.variables.get(dim)
        if known is not None and known.dims == (dim,):
            coordinates[str(dim)] = Coordinate(np.asarray(known.values), known.attrs)
    mapping = container.variables.get(str(found.attrs.get("grid_mapping", "spatial_ref")).split(":")[0])
    return NamedArray(
        found,
        tuple(str(dim) for dim in found.dims),
        coordinates,
        (found.attrs, container.attrs),
        {} if mapping is None else _texts(mapping.attrs),
        image_order=True,
    )


def _named_hdf5(node: h5py.Dataset) -> NamedArray:
    groups = [node.parent]
    while groups[-1].name != "/":
        groups.append(groups[-1].parent)
    attributes = _texts(node.attrs)
    dims: list[str | None] = []
    coordinates = {}
    for dimension, size in zip(node.dims, node.shape, strict=True):
        scale = dimension[0] if len(dimension) else None
        name = dimension.label or None if scale is None else posixpath.basename(scale.name)
        dims.append(name)
        # A dimension without coordinate is a scale and is named as one.
        only_size = scale is not None and "not a netCDF variable" in str(_texts(scale.attrs, links=True).get("NAME"))
        if scale is not None and name is not None and scale.shape == (size,) and not only_size:
            coordinates[name] = Coordinate(np.asarray(scale[:]), _texts(scale.attrs))
    mapping = str(attributes.get("grid_mapping", "spatial_ref")).split(":")[0]
    crs = next((group[mapping] for group in groups if isinstance(group.get(mapping), h5py.Dataset)), None)
    return NamedArray(
        node,
        tuple(dims),
        coordinates,
        (attributes, *(_texts(group.attrs) for group in groups)),
        {} if crs is None else _texts(crs.attrs),
        node.chunks or (),
        image_order=True,
    )


def _texts(attributes: Mapping[str, Any], *, links: bool = False) -> dict[str, Any]:
    """Attributes with text as `str`, and single values without their list."""
    found: dict[str, Any] = {}
    for name in attributes:
        if name in _HDF5_LINKS and not (links and name == "NAME"):
            continue
        value = attributes[name]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.ravel()[0]
        found[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found
