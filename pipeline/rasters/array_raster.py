"""Zarr arrays, HDF5 and NetCDF variables and MATLAB matrices as rasters."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import rioxarray  # noqa: F401  # registers xarray's `rio` accessor
import scipy.io
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.io.matlab import MatReadError

from mibf.errors import InputError
from pipeline.grid import Window, grid_from_json
from pipeline.io import checksums, storage, zarr_store
from pipeline.rasters.header import Axis, GdalBands, Header, RasterFile, chosen_bands, in_memory, masked_data, unreadable
from pipeline.rasters.untrusted import check_hdf5

#: Dimension names that identify an axis.
AXIS_NAMES: dict[str, Axis] = {
    **dict.fromkeys(("y", "lat", "latitude", "northing", "row", "rows", "line"), "y"),
    **dict.fromkeys(("x", "lon", "longitude", "easting", "column", "columns", "sample"), "x"),
}


@dataclass(frozen=True)
class ArrayRaster:
    """A raster backed by an array instead of GDAL; `fetch` returns the values (band, y, x) of a window."""

    file: RasterFile
    header: Header
    fetch: Callable[[Window], NDArray[Any]] = field(repr=False)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `OpenRaster.read`."""
        try:
            values = self.fetch(window)
        except (OSError, RuntimeError, ValueError) as error:  # raised by codecs for a damaged chunk
            raise unreadable(self.file, error) from error
        return values, masked_data(values, self.header.nodata)

    @contextmanager
    def dataset(self, window: Window) -> Iterator[GdalBands]:
        """See `OpenRaster.dataset`."""
        with in_memory(self, window) as copy:
            yield copy


def open_array(
    file: RasterFile,
    values: Any,
    axes: tuple[Axis, ...],
    *,
    grid: Callable[[int, int], GeoBox],
    nodata: float | None = None,
    gain: float = 1.0,
    offset: float = 0.0,
    block: tuple[int, ...] = (),
) -> ArrayRaster:
    """Make a raster of anything that is indexed like a numpy array; `axes` names its axes in order."""
    order = [axes.index(a) for a in ("band", "y", "x") if a in axes]
    sizes = {axis: int(values.shape[i]) for i, axis in enumerate(axes)}
    chosen = [i - 1 for i in chosen_bands(file, sizes.get("band", 1))]
    unscale = file.unscale and (gain != 1 or offset != 0)

    def fetch(window: Window) -> NDArray[Any]:
        rows, columns = window.slices
        places = {"y": rows, "x": columns, "band": slice(min(chosen), max(chosen) + 1)}
        part = np.asarray(values[tuple(places[a] for a in axes)]).transpose(order)
        part = part if "band" in axes else part[None]
        part = part[[i - min(chosen) for i in chosen]]
        return np.asarray(part * np.float32(gain) + np.float32(offset), np.float32) if unscale else part

    dtype = np.dtype(values.dtype)
    if dtype.kind not in "iufb":
        raise InputError(f"{file}: holds {dtype}, not real numbers; convert complex values to amplitude first.")
    head = Header(
        grid=grid(sizes["y"], sizes["x"]),
        dtypes=("float32" if unscale else dtype.name,) * len(chosen),
        nodata=((nodata if file.nodata is None else file.nodata),) * len(chosen),
        block=(block[axes.index("y")], block[axes.index("x")]) if block else (sizes["y"], sizes["x"]),
        gains=(gain,) * len(chosen),
        offsets=(offset,) * len(chosen),
    )
    return ArrayRaster(file, head, fetch)


def _resolve_axes(
    file: RasterFile, shape: tuple[int, ...], found: tuple[Axis | None, ...] | None = None
) -> tuple[Axis, ...]:
    """The axes as configured, else as named in the file; two axes are (y, x) by default."""
    size = " x ".join(map(str, shape))
    axes: tuple[Axis | None, ...] | None = file.axes or found or (("y", "x") if len(shape) == 2 else None)
    if axes is None or None in axes:
        raise InputError(
            f"{file}: the axis order of this {size} array is unknown; set it, for example `axes: [y, x, band]`."
        )
    if len(axes) != len(shape) or set(axes) not in ({"y", "x"}, {"y", "x", "band"}) or len(set(axes)) != len(axes):
        raise InputError(
            f"{file}: `axes` {list(axes)} does not match the array's {len(shape)} axes ({size}); list each axis once."
        )
    return tuple(a for a in axes if a is not None)


def _image_grid(rows: int, columns: int) -> GeoBox:
    """The grid of an image without georeferencing."""
    return GeoBox((rows, columns), Affine.identity(), None)


def open_zarr_raster(file: RasterFile) -> ArrayRaster:
    """Open an array of a Zarr group, which `variable` selects."""
    if file.variable is None:
        raise InputError(f"{file.url}: is a Zarr group; select the array with `variable`.")
    group, _, name = file.variable.strip("/").rpartition("/")
    try:
        root = zarr_store.open_zarr(file.url)
        dataset = xr.open_zarr(
            zarr_store.zarr_location(file.url),
            group=group or None,
            chunks=None,
            mask_and_scale=False,
            decode_coords="all",
            consolidated=root.metadata.consolidated_metadata is not None and not group,
        )
    except Exception as error:  # zarr and xarray raise many types for invalid metadata
        raise InputError(f"{file}: cannot be opened as a Zarr group ({type(error).__name__}: {error}).") from error
    if name not in dataset:
        raise InputError(f"{file.url}: has no array {file.variable!r}; it has {', '.join(map(str, dataset)) or 'none'}.")
    array = dataset[name]
    dims: list[Axis | None] = [AXIS_NAMES.get(str(d).lower()) for d in array.dims]
    if len(dims) == 3 and dims.count(None) == 1:
        dims[dims.index(None)] = "band"
    axes = _resolve_axes(file, array.shape, tuple(dims))
    attributes = {**array.attrs, **array.encoding}

    def grid(rows: int, columns: int) -> GeoBox:
        for known in (array.attrs, dataset.attrs, dict(root.attrs)):
            if "spatial:transform" in known:
                return grid_from_json({**known, "spatial:shape": [rows, columns]})
        names = {str(array.dims[axes.index(axis)]): axis for axis in ("y", "x")}
        placed = array.rename({name: axis for name, axis in names.items() if name != axis})
        for axis in ("y", "x"):
            steps = np.diff(placed[axis].values) if axis in placed.coords else np.zeros(0)
            if len(steps) and np.abs(steps - steps.mean()).max() > 0.01 * abs(steps.mean()):
                raise InputError(
                    f"{file}: its coordinates along {axis} are not evenly spaced; resample to a regular grid first."
                )
        if not ("x" in placed.coords and "y" in placed.coords) and placed.rio.crs is None:
            return _image_grid(rows, columns)
        crs = placed.rio.crs
        return GeoBox((rows, columns), placed.rio.transform(recalc=True), crs and crs.to_wkt())

    nodata = attributes.get("_FillValue", attributes.get("missing_value"))
    return open_array(
        file,
        array.variable,
        axes,
        grid=grid,
        nodata=None if nodata is None else _attribute_number(file, "_FillValue", nodata),
        gain=_attribute_number(file, "scale_factor", attributes.get("scale_factor", 1.0)),
        offset=_attribute_number(file, "add_offset", attributes.get("add_offset", 0.0)),
        block=tuple(int(c) for c in array.encoding.get("shards") or array.encoding.get("chunks") or ()),
    )


def _attribute_number(file: RasterFile, name: str, value: Any) -> float:
    try:
        return float(np.asarray(value).ravel()[0])
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{file}: its attribute {name} is {value!r}, not a number; fix the attribute.") from error


def open_matlab(file: RasterFile) -> ArrayRaster:
    """Open a variable of a MATLAB file, which `variable` selects if there are several."""
    variables = _matlab_file(file.url, checksums.input_fingerprint(file.url))
    if file.variable is None:
        raise InputError(f"{file.url}: is a MATLAB file; select the array with `variable`: {', '.join(variables)}.")
    if file.variable not in variables:
        raise InputError(f"{file.url}: has no variable {file.variable!r}; it has {', '.join(variables)}.")
    values = variables[file.variable]
    if isinstance(values, h5py.Dataset):
        # HDF5 stores MATLAB's column-major array with its axes reversed.
        axes = _resolve_axes(file, values.shape[::-1])
        return open_array(file, values, axes[::-1], grid=_image_grid, block=values.chunks or ())
    return open_array(file, values, _resolve_axes(file, values.shape), grid=_image_grid)


@lru_cache(maxsize=4)
def _matlab_file(url: str, stamp: str) -> dict[str, Any]:
    """The arrays of a MATLAB file by name: version 7.3 as HDF5 datasets, read in windows; version 5 loaded completely.

    Version 5 compresses each array as one block, of at most 2 GiB, which cannot be read in windows.
    """
    del stamp  # part of the cache key: changes when the file does
    filesystem, path = storage.open_url(url)
    try:
        handle = filesystem.open(path)
        try:
            found = scipy.io.loadmat(handle)
        except NotImplementedError:  # raised by scipy for version 7.3
            file = h5py.File(handle)
            check_hdf5(url, file)
            return {name: file[name] for name in file if isinstance(file[name], h5py.Dataset)}
        handle.close()
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file; check the path in the configuration.") from error
    except (OSError, ValueError, TypeError, zlib.error, MatReadError) as error:
        raise InputError(f"{url}: cannot be read as a MATLAB file ({error}); it is damaged or of another format.") from error
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray) and value.ndim in (2, 3)}
