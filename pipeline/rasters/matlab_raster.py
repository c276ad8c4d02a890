"""Variables of MATLAB files as rasters: matrices, fields of structs and sparse matrices."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from mibf.errors import InputError
from pipeline.io import checksums, storage
from pipeline.rasters.array_raster import ArrayRaster, open_array
from pipeline.rasters.header import RasterFile
from pipeline.rasters.placement import NamedArray
from pipeline.rasters.untrusted import check_hdf5

#: Maximum bytes of a sparse matrix as a dense one, which is held in memory.
MAX_DENSE_BYTES = 1 << 31


def open_matlab(file: RasterFile) -> ArrayRaster:
    """Open a variable of a MATLAB file, which `variable` selects if there are several.

    A struct's field is STRUCT.FIELD; an element of a cell array (version 5) is CELL{NUMBER}, as in MATLAB.

    Raises:
        InputError: the file cannot be read, or has no such variable, or its axes are unknown.
    """
    variables = matlab_arrays(file.url, file.stamp or checksums.input_fingerprint(file.url))
    if file.variable is None:
        raise InputError(f"{file.url}: is a MATLAB file; select the array with `variable`: {', '.join(variables)}.")
    if file.variable not in variables:
        raise InputError(f"{file.url}: has no variable {file.variable!r}; it has {', '.join(variables)}.")
    values = variables[file.variable]
    if scipy.sparse.issparse(values):
        rows, columns = values.shape
        if rows * columns * values.dtype.itemsize > MAX_DENSE_BYTES:
            raise InputError(
                f"{file}: is a sparse matrix of {rows} x {columns}; too large to be read, save it as a GeoTIFF."
            )
        values = values.toarray()
    block = () if isinstance(values, np.ndarray) else values.block
    return open_array(file, NamedArray(values, (None,) * len(values.shape), block=block))


class _Reversed:
    """A dataset of a file of version 7.3, which stores MATLAB's column-major array with its axes reversed."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self.shape: tuple[int, ...] = tuple(dataset.shape[::-1])
        self.dtype: np.dtype[Any] = dataset.dtype
        self.block: tuple[int, ...] = tuple((dataset.chunks or ())[::-1])

    def __getitem__(self, places: tuple[slice | int, ...]) -> NDArray[Any]:
        return np.asarray(self._dataset[places[::-1]]).T


@lru_cache(maxsize=4)
def matlab_arrays(url: str, stamp: str) -> dict[str, Any]:
    """The arrays of a MATLAB file by name: version 7.3 as HDF5 datasets, read in windows; version 5 loaded completely.

    Version 5 compresses each array as one block, of at most 2 GiB, which cannot be read in windows.

    Raises:
        InputError: the file cannot be read.
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
            return {name: value for key in file if key != "#refs#" for name, value in _hdf5_arrays(key, file[key])}
        handle.close()
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file; check the path.") from error
    except (OSError, ValueError, TypeError, zlib.error, MatReadError) as error:
        raise InputError(f"{url}: cannot be read as a MATLAB file ({error}); it is damaged or of another format.") from error
    return {name: value for key, item in found.items() if not key.startswith("__") for name, value in _arrays(key, item)}


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The matrices of a variable as scipy loads it: its own, or those of a struct's fields and of a cell's elements."""
    if isinstance(value, np.ndarray) and value.dtype.names is not None and value.size == 1:
        for key in value.dtype.names:
            yield from _arrays(f"{name}.{key}", value.ravel()[0][key])
    elif isinstance(value, np.ndarray) and value.dtype == object:  # a cell array
        for number, element in enumerate(value.ravel(order="F"), 1):
            yield from _arrays(f"{name}{{{number}}}", element)
    elif scipy.sparse.issparse(value) or (isinstance(value, np.ndarray) and value.ndim >= 2 and value.dtype.kind in "iufbc"):
        yield name, value


def _hdf5_arrays(name: str, item: h5py.Dataset | h5py.Group) -> Iterator[tuple[str, Any]]:
    if isinstance(item, h5py.Dataset):
        kind = item.attrs.get("MATLAB_class", b"")
        if item.ndim >= 2 and kind not in (b"char", b"cell", "char", "cell") and not item.attrs.get("MATLAB_empty", 0):
            yield name, _Reversed(item)
    elif "MATLAB_sparse" in item.attrs:
        columns = np.asarray(item["jc"])
        if "data" in item:  # absent if every value is 0
            parts = (np.asarray(item["data"]), np.asarray(item["ir"]), columns)
            yield name, scipy.sparse.csc_matrix(parts, shape=(int(item.attrs["MATLAB_sparse"]), len(columns) - 1))
    else:
        for key in item:
            yield from _hdf5_arrays(f"{name}.{key}", item[key])
