"""Rasters that are read from arrays instead of by GDAL: validity, scale and offset of what `placement` has placed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xarray.backends.zarr import FillValueCoder

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import (
    GdalBands,
    Header,
    RasterFile,
    StatedBand,
    agreed_nodata,
    agreed_scaling,
    chosen_bands,
    dtype_holds,
    in_memory,
    masked_data,
    stated_band,
    unreadable,
)
from pipeline.rasters.placement import NamedArray, Placement, place


@dataclass(frozen=True)
class ArrayRaster:
    """A raster backed by an array instead of GDAL; `fetch` returns the stored values (band, y, x) of a window."""

    file: RasterFile
    header: Header
    fetch: Callable[[Window], NDArray[Any]] = field(repr=False)
    absent: tuple[float, ...] = ()  #: nodata values, as stored
    limits: tuple[float, float] | None = None  #: lowest and highest valid value, as stored

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `OpenRaster.read`."""
        try:
            values = self.fetch(window)
        except (OSError, RuntimeError, ValueError) as error:  # raised by codecs for a damaged chunk
            raise unreadable(self.file, error) from error
        valid = masked_data(values, [self.absent] * len(values))
        if self.limits is not None:
            valid &= ((values >= self.limits[0]) & (values <= self.limits[1])).all(axis=0)
        if not self.file.unscale or not self.header.unscaled:
            return values, valid
        with np.errstate(over="ignore", invalid="ignore"):  # of values without data, and checked for the others
            gain, offset = np.float32(self.header.gains[0]), np.float32(self.header.offsets[0])
            physical = np.asarray(values * gain + offset, np.float32)
        return physical, valid & np.isfinite(physical).all(axis=0)

    @contextmanager
    def dataset(self, window: Window) -> Iterator[GdalBands]:
        """See `OpenRaster.dataset`."""
        with in_memory(self, window) as copy:
            yield copy


def open_array(file: RasterFile, array: NamedArray) -> ArrayRaster:
    """Make a raster of an array; its attributes are CF's.

    Raises:
        InputError: its place is unknown or its values are not real numbers.
    """
    attributes = array.attributes[0]
    dtype = np.dtype(array.values.dtype)
    if dtype.kind not in "iufb":
        raise InputError(f"{file}: holds {dtype}, not real numbers; convert complex values to amplitude first.")
    dtype = dtype.newbyteorder("=")
    if str(attributes.get("_Unsigned")).lower() == "true" and dtype.kind == "i":  # NetCDF-3 has no unsigned types
        dtype = np.dtype(f"uint{8 * dtype.itemsize}")
    placement = place(file, array)
    sizes = dict(zip(placement.axes, array.values.shape, strict=True))
    chosen = [i - 1 for i in chosen_bands(file, int(sizes.get("band", 1)))]
    declared = _nodata(file, attributes, dtype)
    fill = {} if array.unwritten is None else {"_FillValue": array.unwritten}
    absent = _nodata(file, fill | dict(attributes), dtype)
    gain, offset = (_number(file, name, attributes.get(name, default)) for name, default in SCALING.items())
    stated = _stated(file, chosen, int(sizes.get("band", 1)))
    gain, offset = agreed_scaling(file, gain, offset, stated)
    if file.nodata is None and stated.nodata is not None:
        own = agreed_nodata(file, declared[0] if len(declared) == 1 else None, stated, dtype)
        absent = absent if own is None else tuple(dict.fromkeys((*absent, own)))
    unscale = file.unscale and (gain != 1 or offset != 0)
    block = array.block or tuple(array.values.shape)
    head = Header(
        grid=placement.grid,
        dtypes=("float32" if unscale else dtype.name,) * len(chosen),
        nodata=(absent[0] if absent else None,) * len(chosen),
        block=(int(block[placement.axes.index("y")]), int(block[placement.axes.index("x")])),
        gains=(gain,) * len(chosen),
        offsets=(offset,) * len(chosen),
        file_bands=sizes.get("band", 1),
    )
    fetch = _fetcher(array.values, placement, chosen, dtype)
    return ArrayRaster(file, head, fetch, absent, _limits(file, attributes, dtype))


def _stated(file: RasterFile, chosen: list[int], count: int) -> StatedBand:
    """What a catalogue states about the bands of an array, which share scale, offset and nodata."""
    found = list(dict.fromkeys(stated_band(file, i + 1, count) for i in chosen))
    if len(found) > 1:
        raise InputError(
            f"{file}: its STAC item states different scales, offsets or nodata values for bands of one array; list the file "
            "with `urls` or `tiles`, and give `nodata`, `gain` and `offset`."
        )
    return found[0]


#: CF's attributes of scale and offset, and their defaults.
SCALING = {"scale_factor": 1.0, "add_offset": 0.0}


def _fetcher(values: Any, placement: Placement, chosen: list[int], dtype: np.dtype[Any]) -> Callable[[Window], NDArray[Any]]:
    """A function that reads the stored values (band, y, x) of a window of the placed raster."""
    order = [axis for axis in placement.axes if isinstance(axis, str)]
    first = min(chosen)

    def fetch(window: Window) -> NDArray[Any]:
        places: dict[str, slice] = {"band": slice(first, max(chosen) + 1)}
        for axis, wanted, turned, size in zip("yx", window.slices, placement.turned, placement.grid.shape, strict=True):
            places[axis] = slice(size - wanted.stop, size - wanted.start) if turned else wanted
        part = np.asarray(values[tuple(places[a] if isinstance(a, str) else a for a in placement.axes)])
        part = part.transpose([order.index(axis) for axis in ("band", "y", "x") if axis in order])
        part = part if "band" in order else part[None]
        part = part[[i - first for i in chosen]]
        part = part[:, :: -1 if placement.turned[0] else 1, :: -1 if placement.turned[1] else 1]
        part = part.astype(part.dtype.newbyteorder("="), copy=False)
        return np.ascontiguousarray(part).view(dtype) if part.dtype != dtype else np.ascontiguousarray(part)

    return fetch


def _nodata(file: RasterFile, attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> tuple[float, ...]:
    """The stored values that mean no data: the configured one, else CF's `_FillValue` and `missing_value`."""
    if file.nodata is not None:
        return (file.nodata,)
    found: list[float] = []
    for name in ("_FillValue", "missing_value"):
        value = attributes.get(name)
        if value is not None:
            found += _attribute_numbers(file, name, value, dtype)
    if dtype.kind == "u" and str(attributes.get("_Unsigned")).lower() == "true":  # stated as the signed type stores them
        found = [v + 2 ** (8 * dtype.itemsize) if v < 0 else v for v in found]
    held = [v for v in found if dtype.kind == "f" or dtype_holds(dtype, v)]
    return tuple(dict.fromkeys(held))


def _limits(file: RasterFile, attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """The valid range of stored values by CF's attributes; a range in another kind of number is of unpacked values."""
    low, high = -np.inf, np.inf
    for name in ("valid_range", "valid_min", "valid_max"):
        if name not in attributes or file.nodata is not None:
            continue
        numbers = _attribute_numbers(file, name, attributes[name], dtype)
        if len(numbers) != (2 if name == "valid_range" else 1) or any(
            dtype.kind != "f" and not isinstance(v, int) for v in numbers
        ):
            continue
        low = numbers[0] if name != "valid_max" else low
        high = numbers[-1] if name != "valid_min" else high
    return None if (low, high) == (-np.inf, np.inf) else (low, high)


def _attribute_numbers(file: RasterFile, name: str, value: Any, dtype: np.dtype[Any]) -> list[float]:
    """The numbers of an attribute, exactly as it states them: integers as int."""
    if isinstance(value, str | bytes) and dtype.kind == "f":
        try:
            return [float(value)]  # also NaN and Infinity
        except ValueError:
            pass
        try:
            return [float(FillValueCoder.decode(value, dtype))]  # xarray's form in Zarr 3
        except (ValueError, TypeError):
            pass
    try:
        return [v if isinstance(v, int) else float(v) for v in np.asarray(value).ravel().tolist()]
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: its attribute {name} is {value!r}, not a number; fix the attribute.") from error


def _number(file: RasterFile, name: str, value: Any) -> float:
    numbers = _attribute_numbers(file, name, value, np.dtype(np.float64))
    if len(numbers) != 1:
        raise InputError(f"{file}: its attribute {name} is {value!r}, not a number; fix the attribute.")
    return float(numbers[0])
