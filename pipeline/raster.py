"""One raster where it lies: a file that GDAL opens, a Zarr array or a MATLAB variable, read window by window.

Whatever it is, it comes out as values (band, y, x) with a mask of where they are data, on a grid that says where that is.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol

import h5py
import numpy as np
import rioxarray  # noqa: F401  # gives arrays of xarray their `rio`
import scipy.io
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window as GdalWindow
from scipy.io.matlab import MatReadError

from mibf.errors import InputError
from pipeline import storage
from pipeline.grid import Window, grid_from_json
from pipeline.strangers import check_contained, check_hdf5, open_dataset
from pipeline.whole import check_whole

# Images without a CRS are taken as they are: no cause for warnings about them.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

Axis = Literal["band", "y", "x"]
#: What the axes of arrays are called where they say it themselves.
AXIS_NAMES: dict[str, Axis] = {
    **dict.fromkeys(("y", "lat", "latitude", "northing", "row", "rows", "line"), "y"),
    **dict.fromkeys(("x", "lon", "longitude", "easting", "column", "columns", "sample"), "x"),
}


@dataclass(frozen=True)
class RasterFile:
    """A raster as declared: its URL and what of it is meant."""

    url: str
    variable: str | None = None  #: the array's name in a file that holds several (MATLAB, Zarr, NetCDF, HDF5)
    axes: tuple[Axis, ...] | None = None  #: the order of an array's axes, where the file does not say it
    bands: tuple[int, ...] | None = None  #: the bands that are meant, counted from 1, in this order; None for all
    nodata: float | None = None  #: in place of the file's own
    unscale: bool = False  #: apply the scale and offset that the file carries

    def __str__(self) -> str:
        url = storage.shown(self.url)
        return url if self.variable is None else f"{url} ({self.variable})"


@dataclass(frozen=True)
class Header:
    """What is known of a raster without reading a pixel of it."""

    grid: GeoBox
    dtypes: tuple[str, ...]  #: of each band that is meant, as they come out
    nodata: tuple[float | None, ...]
    block: tuple[int, int]  #: rows and columns that are read from the file at once
    gains: tuple[float, ...]  #: the file's own scale of each band ...
    offsets: tuple[float, ...]  #: ... and its offset

    @property
    def bands(self) -> int:
        """How many bands are meant."""
        return len(self.dtypes)

    @property
    def unscaled(self) -> bool:
        """Whether the file says that its values are to be multiplied or shifted."""
        return any(g != 1 for g in self.gains) or any(o != 0 for o in self.offsets)


@dataclass(frozen=True)
class Layers:
    """A dataset of GDAL's, the numbers of its bands that are meant, and the value that means no data in all of them."""

    dataset: DatasetReader
    indexes: Sequence[int]
    nodata: float | None


class UnreadableError(InputError):
    """Pixels of a raster cannot be read, though the raster could be opened."""


class OpenRaster(Protocol):
    """A raster that is open for reading."""

    @property
    def header(self) -> Header:
        """What is known of it without reading a pixel."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (band, height, width) of a window of its own grid, and where (height, width) all bands are data."""

    def dataset(self, window: Window) -> AbstractContextManager[Layers]:
        """The raster, or that window of it at least, as a dataset of GDAL's."""


@contextmanager
def open_raster(file: RasterFile) -> Iterator[OpenRaster]:
    """Open a raster by what it is.

    Raises:
        InputError: it is not there, cannot be read, or has not what is asked of it.
    """
    path = file.url.split("?")[0].rstrip("/").lower()
    if path.endswith(".mat"):
        yield _matlab(file)
    elif path.endswith(".zarr"):
        yield _zarr(file)
    else:
        with _gdal(file) as opened:
            yield opened


@lru_cache(maxsize=4096)
def _read_header(file: RasterFile, stamp: str) -> Header:
    del stamp  # tells a file from the one that was there before
    with open_raster(file) as opened:
        if isinstance(opened, _GdalRaster):
            opened.check_whole()
        return opened.header


def header(file: RasterFile) -> Header:
    """What is known of a raster without reading a pixel; read once as long as the file does not change.

    Raises:
        InputError: as `open_raster`.
    """
    return _read_header(file, storage.stamp(file.url))


# --- GDAL


@contextmanager
def _gdal(file: RasterFile) -> Iterator[_GdalRaster]:
    storage.set_gdal_up()
    try:
        dataset = open_dataset(file.url, _gdal_name(file))
    except RasterioIOError as error:
        if storage.is_local(file.url) and not storage.exists(file.url):
            raise InputError(f"{file.url}: no such file; check the path in the configuration.") from error
        raise InputError(f"{file}: cannot be read as a raster ({storage.without_queries(str(error))}).") from error
    with dataset:
        if dataset.count == 0 and dataset.subdatasets:
            names = ", ".join(name.rsplit(":", 1)[-1].strip("/") for name in dataset.subdatasets[:20])
            raise InputError(f"{file}: holds several arrays; name one with `variable`: {names}.")
        if dataset.gcps[0] and dataset.crs is None:
            raise InputError(
                f"{file}: is placed by ground control points alone; bring it to a grid first, for example with `gdalwarp`."
            )
        yield _GdalRaster(file, dataset)


def _gdal_name(file: RasterFile) -> str:
    name = storage.gdal_path(file.url)
    if file.variable is None:
        return name
    driver = "NETCDF" if file.url.lower().endswith((".nc", ".nc4", ".cdf")) else "HDF5"
    return f'{driver}:"{name}":{"//" if driver == "HDF5" else ""}{file.variable.lstrip("/")}'


class _GdalRaster:
    """A raster that GDAL has opened."""

    def __init__(self, file: RasterFile, dataset: DatasetReader) -> None:
        self.file, self._dataset = file, dataset
        self.indexes = _chosen(file, dataset.count)
        self._check_kind()
        at = [i - 1 for i in self.indexes]
        crs = dataset.crs and dataset.crs.to_wkt()
        gains, offsets = (tuple(float(v[i]) for i in at) for v in (dataset.scales, dataset.offsets))
        unscale = file.unscale and any(g != 1 or o != 0 for g, o in zip(gains, offsets, strict=True))
        self.header = Header(
            grid=GeoBox((dataset.height, dataset.width), dataset.transform, crs),
            dtypes=tuple("float32" if unscale else dataset.dtypes[i] for i in at),
            nodata=tuple(dataset.nodatavals[i] if file.nodata is None else file.nodata for i in at),
            block=tuple(dataset.block_shapes[0]),
            gains=gains,
            offsets=offsets,
        )
        self._unscale = unscale
        self._dtype = np.result_type(*(dataset.dtypes[i] for i in at))
        # By a mask of its own, of the dataset or of a band (which has no flag), or by a band of transparency.
        flags = [dataset.mask_flag_enums[i] for i in at]
        self._masked = any(MaskFlags.per_dataset in of_band or not of_band for of_band in flags)

    def _check_kind(self) -> None:
        for index in self.indexes:
            if self._dataset.colorinterp[index - 1] == ColorInterp.alpha:
                raise InputError(
                    f"{self.file}: band {index} is tagged as transparency (alpha). Leave it out with `bands`: there is then "
                    f"no data where it is 0. If it is a sensor's band, untag it with `gdal_translate -colorinterp_{index} "
                    "undefined`."
                )
            if self._dataset.dtypes[index - 1].startswith("complex"):
                raise InputError(f"{self.file}: holds complex numbers; take their amplitude or intensity first.")

    def check_whole(self) -> None:
        """See that the file is as long as it says, and holds its pixels itself; refused where it is not or does not."""
        check_contained(self.file.url, self._dataset.driver)
        if self.file.variable is None:
            check_whole(self.file.url, self._dataset)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        place = GdalWindow(window.x, window.y, window.width, window.height)
        with _told_of(self.file):
            values = self._read(place)
            valid = _data(values, self.header.nodata)
            if self._masked:
                valid &= (self._dataset.read_masks(self.indexes, window=place) != 0).all(axis=0)
        return self._physical(values), valid

    def _read(self, place: GdalWindow) -> NDArray[Any]:
        if len({self._dataset.dtypes[i - 1] for i in self.indexes}) == 1:
            return np.asarray(self._dataset.read(self.indexes, window=place))
        # rasterio reads bands of several types only one by one
        return np.stack([self._dataset.read(i, window=place).astype(self._dtype) for i in self.indexes])

    def _physical(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self._unscale:
            return values
        gains, offsets = (np.array(v, np.float32)[:, None, None] for v in (self.header.gains, self.header.offsets))
        return np.asarray(values * gains + offsets, np.float32)

    @contextmanager
    def dataset(self, window: Window) -> Iterator[Layers]:
        # What a view of it would not heed: besides a finite nodata value, NaN may stand in floats.
        undeclared = self._dtype.kind == "f" and any(n is not None and np.isfinite(n) for n in self.header.nodata)
        if self._masked or self._unscale or undeclared or len(set(map(str, self.header.nodata))) > 1:
            with _in_memory(self, window) as copy:
                yield copy
            return
        nodata = self.header.nodata[0]
        if nodata is not None and self._dtype.kind in "iu" and not _holds(self._dtype, nodata):
            nodata = None  # no pixel can have it
        if self._dtype.kind == "f":
            nodata = np.nan
        with _told_of(self.file):
            yield Layers(self._dataset, self.indexes, nodata)  # GDAL reads what it needs


@contextmanager
def _told_of(file: RasterFile) -> Iterator[None]:
    """Turn a failure to read pixels into a refusal that names the file."""
    try:
        yield
    except RasterioIOError as error:
        raise _unreadable(file, error.__cause__ or error) from error


def _unreadable(file: RasterFile, error: BaseException) -> UnreadableError:
    return UnreadableError(
        f"{file}: cannot be read ({storage.without_queries(str(error))}); the file is damaged or cut short, or not to be "
        "reached. Get it again, or leave it out."
    )


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether a type of integers has a value."""
    limits = np.iinfo(dtype)
    return bool(np.isfinite(value)) and limits.min <= value <= limits.max and value == int(value)


def _chosen(file: RasterFile, count: int) -> list[int]:
    """The numbers of the bands that are meant."""
    chosen = list(range(1, count + 1)) if file.bands is None else list(file.bands)
    beyond = [str(b) for b in chosen if not 1 <= b <= count]
    if beyond:
        raise InputError(f"{file}: has no band {', '.join(beyond)}; its bands are 1 to {count}.")
    return chosen


def _data(values: NDArray[Any], nodata: Sequence[float | None]) -> NDArray[np.bool_]:
    """Where (y, x) all bands are data: finite, and not their nodata value."""
    valid = np.ones(values.shape[1:], bool)
    floating = values.dtype.kind == "f"
    for band, absent in zip(values, nodata, strict=True):
        if floating:
            valid &= np.isfinite(band)
        if absent is None or not (np.isfinite(absent) if floating else _holds(values.dtype, absent)):
            continue
        # Compared in the values' own type: a nodata of -3.4e38 is meant as the nearest float32.
        valid &= band != np.float64(absent).astype(band.dtype)
    return valid


# --- arrays


@dataclass(frozen=True)
class _ArrayRaster:
    """Values that are no file of GDAL's: `fetch` gives the (band, y, x) of a window."""

    file: RasterFile
    header: Header
    fetch: Callable[[Window], NDArray[Any]] = field(repr=False)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        try:
            values = self.fetch(window)
        except (OSError, RuntimeError, ValueError) as error:  # what codecs raise of a chunk that is damaged
            raise _unreadable(self.file, error) from error
        return values, _data(values, self.header.nodata)

    @contextmanager
    def dataset(self, window: Window) -> Iterator[Layers]:
        with _in_memory(self, window) as copy:
            yield copy


def warped_dtype(dtypes: Sequence[str]) -> str:
    """The type of floats that holds resampled values of these types: whole numbers beyond 24 bits need the longer one."""
    return "float64" if np.result_type(*dtypes, np.float32) == np.float64 and "float64" not in dtypes else "float32"


@contextmanager
def _in_memory(raster: OpenRaster, window: Window) -> Iterator[Layers]:
    """A window of a raster as a dataset in memory, of floats with NaN where there is no data."""
    values, valid = raster.read(window)
    dtype = warped_dtype(raster.header.dtypes)
    part = raster.header.grid[window.slices]
    profile = {
        "driver": "GTiff",
        "count": len(values),
        "height": window.height,
        "width": window.width,
        "dtype": dtype,
        "nodata": np.nan,
        "transform": part.affine,
        "crs": None if part.crs is None else part.crs.to_wkt(),
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as target:
            target.write(np.where(valid, values, np.nan).astype(dtype))
        with memory.open() as dataset:
            yield Layers(dataset, range(1, len(values) + 1), np.nan)


def _array(
    file: RasterFile,
    values: Any,
    axes: tuple[Axis, ...],
    *,
    grid: Callable[[int, int], GeoBox],
    nodata: float | None = None,
    gain: float = 1.0,
    offset: float = 0.0,
    block: tuple[int, ...] = (),
) -> _ArrayRaster:
    """A raster of anything that is indexed like a numpy array; `axes` say which axis is which."""
    order = [axes.index(a) for a in ("band", "y", "x") if a in axes]
    sizes = {axis: int(values.shape[i]) for i, axis in enumerate(axes)}
    chosen = [i - 1 for i in _chosen(file, sizes.get("band", 1))]
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
        raise InputError(f"{file}: holds {dtype}, not numbers; take the amplitude of complex ones first.")
    head = Header(
        grid=grid(sizes["y"], sizes["x"]),
        dtypes=("float32" if unscale else dtype.name,) * len(chosen),
        nodata=((nodata if file.nodata is None else file.nodata),) * len(chosen),
        block=(block[axes.index("y")], block[axes.index("x")]) if block else (sizes["y"], sizes["x"]),
        gains=(gain,) * len(chosen),
        offsets=(offset,) * len(chosen),
    )
    return _ArrayRaster(file, head, fetch)


def _stated_axes(file: RasterFile, shape: tuple[int, ...], found: tuple[Axis | None, ...] | None = None) -> tuple[Axis, ...]:
    """The axes as stated, or as the file names them; two axes are rows and columns."""
    size = " x ".join(map(str, shape))
    axes: tuple[Axis | None, ...] | None = file.axes or found or (("y", "x") if len(shape) == 2 else None)
    if axes is None or None in axes:
        raise InputError(
            f"{file}: is an array of {size} that does not say which axis is which; "
            "state it, for example `axes: [y, x, band]`."
        )
    if len(axes) != len(shape) or set(axes) not in ({"y", "x"}, {"y", "x", "band"}) or len(set(axes)) != len(axes):
        raise InputError(f"{file}: `axes` {list(axes)} do not fit its {len(shape)} axes ({size}); name each of them once.")
    return tuple(a for a in axes if a is not None)


def _image_grid(rows: int, columns: int) -> GeoBox:
    """The grid of an image that says nothing of where it lies."""
    return GeoBox((rows, columns), Affine.identity(), None)


def _zarr(file: RasterFile) -> _ArrayRaster:
    if file.variable is None:
        raise InputError(f"{file.url}: is a Zarr group; name the array with `variable`.")
    group, _, name = file.variable.strip("/").rpartition("/")
    try:
        root = storage.open_zarr(file.url)
        dataset = xr.open_zarr(
            storage.zarr_location(file.url),
            group=group or None,
            chunks=None,
            mask_and_scale=False,
            decode_coords="all",
            consolidated=root.metadata.consolidated_metadata is not None and not group,
        )
    except Exception as error:  # zarr and xarray have many for metadata that are none
        raise InputError(f"{file}: cannot be opened as a Zarr group ({type(error).__name__}: {error}).") from error
    if name not in dataset:
        raise InputError(f"{file.url}: has no array {file.variable!r}; there are {', '.join(map(str, dataset)) or 'none'}.")
    array = dataset[name]
    dims: list[Axis | None] = [AXIS_NAMES.get(str(d).lower()) for d in array.dims]
    if len(dims) == 3 and dims.count(None) == 1:
        dims[dims.index(None)] = "band"
    axes = _stated_axes(file, array.shape, tuple(dims))
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
                raise InputError(f"{file}: its coordinates along {axis} are not evenly spaced; bring it to a grid first.")
        if not ("x" in placed.coords and "y" in placed.coords) and placed.rio.crs is None:
            return _image_grid(rows, columns)
        crs = placed.rio.crs
        return GeoBox((rows, columns), placed.rio.transform(recalc=True), crs and crs.to_wkt())

    nodata = attributes.get("_FillValue", attributes.get("missing_value"))

    def number(name: str, value: Any) -> float:
        try:
            return float(np.asarray(value).ravel()[0])
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(f"{file}: its attribute {name} is {value!r}, no number; mend the array.") from error

    return _array(
        file,
        array.variable,
        axes,
        grid=grid,
        nodata=None if nodata is None else number("_FillValue", nodata),
        gain=number("scale_factor", attributes.get("scale_factor", 1.0)),
        offset=number("add_offset", attributes.get("add_offset", 0.0)),
        block=tuple(int(c) for c in array.encoding.get("shards") or array.encoding.get("chunks") or ()),
    )


def _matlab(file: RasterFile) -> _ArrayRaster:
    variables = _matlab_file(file.url, storage.stamp(file.url))
    if file.variable is None:
        raise InputError(f"{file.url}: is a MATLAB file; name the array with `variable`: {', '.join(variables)}.")
    if file.variable not in variables:
        raise InputError(f"{file.url}: has no variable {file.variable!r}; it has {', '.join(variables)}.")
    values = variables[file.variable]
    if isinstance(values, h5py.Dataset):
        # HDF5 keeps MATLAB's column-major array with its axes the other way round.
        stated = _stated_axes(file, values.shape[::-1])
        return _array(file, values, stated[::-1], grid=_image_grid, block=values.chunks or ())
    return _array(file, values, _stated_axes(file, values.shape), grid=_image_grid)


@lru_cache(maxsize=4)
def _matlab_file(url: str, stamp: str) -> dict[str, Any]:
    """The arrays of a MATLAB file by name: of version 7.3 as datasets of HDF5, read in windows; of version 5 whole.

    Version 5 compresses each array as one piece, of 2 GiB at most, so that there is no window to read.
    """
    del stamp  # tells a file from the one that was there before
    filesystem, path = storage.open_url(url)
    try:
        handle = filesystem.open(path)
        try:
            found = scipy.io.loadmat(handle)
        except NotImplementedError:  # what scipy says of version 7.3
            file = h5py.File(handle)
            check_hdf5(url, file)
            return {name: file[name] for name in file if isinstance(file[name], h5py.Dataset)}
        handle.close()
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file; check the path in the configuration.") from error
    except (OSError, ValueError, TypeError, zlib.error, MatReadError) as error:
        raise InputError(f"{url}: cannot be read as a MATLAB file ({error}); it is damaged, or none.") from error
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray) and value.ndim in (2, 3)}
