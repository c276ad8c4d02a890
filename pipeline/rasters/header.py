"""Shared by all raster readers: the file as declared, its header, and errors that name it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import rasterio.crs
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader, MemoryFile

from mibf.errors import InputError
from pipeline.decoding.encodings import Encoding
from pipeline.grid import Window
from pipeline.io import storage

#: The name of an array's axis: band, y, x, or another one along which `select` takes one value.
Axis = str


@dataclass(frozen=True)
class StatedBand:
    """What a catalogue states about the values of a band; None: nothing."""

    gain: float | None = None  #: with an offset, or neither
    offset: float | None = None
    nodata: float | None = None
    decided: bool = False  #: whether gain and offset hold whatever the file states
    undecided: bool = False  #: whether values have a scale and offset that are not known
    nodata_is_default: bool = False  #: whether the file's nodata value, if it has one, holds instead
    unusable: tuple[tuple[str, str], ...] = ()  #: names of values that it states wrongly, with a message on each

    def check(self, file: RasterFile, *names: str) -> None:
        """Check that values that are used are stated rightly.

        Raises:
            InputError: one is not.
        """
        for name, message in self.unusable:
            if name in names:
                raise InputError(f"{file}: {message}")


@dataclass(frozen=True)
class RasterFile:
    """A raster as declared in the configuration: its URL and which part of it to read."""

    url: str
    variable: str | None = None  #: the array to read from a file with several (MATLAB, Zarr, NetCDF, HDF5)
    axes: tuple[Axis, ...] | None = None  #: order of the array's axes, if the file does not state it
    bands: tuple[int, ...] | None = None  #: bands to read, numbered from 1, in this order; None: all
    nodata: float | None = None  #: overrides the file's nodata values; an int is compared exactly
    unscale: bool = False  #: apply the file's scale and offset
    crs: str | None = None  #: of a file that states none
    select: tuple[tuple[str, str | float], ...] = ()  #: the one value that is read along axes other than band, y and x
    stamp: str | None = None  #: the file's fingerprint when it was checked; content cached before that is not read
    decode: Encoding | None = None  #: how its values are encoded; power (`db`) is read as power
    scales: RasterFile | None = None  #: of `tessera`: the raster of its pixels' factors, on the same grid
    stated: tuple[StatedBand, ...] = ()  #: what a catalogue states about all bands of the file, or about each
    stated_crs: str | None = None  #: what a catalogue states; of no effect if `crs` or the file states one

    def __str__(self) -> str:
        url = storage.redact_url(self.url)
        return url if self.variable is None else f"{url} ({self.variable})"

    @property
    def files(self) -> list[RasterFile]:
        """The raster and what else it is read with."""
        return [self] if self.scales is None else [self, self.scales]


@dataclass(frozen=True)
class Header:
    """Metadata of a raster, known without reading pixels."""

    grid: GeoBox
    dtypes: tuple[str, ...]  #: of each selected band, as read
    nodata: tuple[float | None, ...]
    block: tuple[int, int]  #: rows and columns of the file's blocks, the unit that is read
    gains: tuple[float, ...]  #: the file's scale factor of each band
    offsets: tuple[float, ...]  #: the file's offset of each band
    rpcs: bool = False  #: whether rational polynomial coefficients (RPCs) relate pixels to the ground
    file_bands: int = 1  #: bands that the file has, selected or not
    left_out: str | None = None  #: what the file holds beside this raster, and how to read it instead

    @property
    def bands(self) -> int:
        """Number of selected bands."""
        return len(self.dtypes)

    @property
    def unscaled(self) -> bool:
        """Whether the file declares a scale other than 1 or an offset other than 0."""
        return any(g != 1 for g in self.gains) or any(o != 0 for o in self.offsets)


@dataclass(frozen=True)
class GdalBands:
    """A GDAL dataset, the numbers of the selected bands, and the nodata value that they share."""

    dataset: DatasetReader
    indexes: Sequence[int]
    nodata: float | None


class DamagedError(InputError):
    """A file exists, but is not a raster, or is incomplete."""


class UnreadableError(InputError):
    """Pixels of a raster cannot be read although the raster could be opened."""


class OpenRaster(Protocol):
    """A raster open for reading."""

    @property
    def header(self) -> Header:
        """Metadata, known without reading pixels."""

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (band, height, width) of a window of the raster, and where (height, width) all bands are valid."""

    def dataset(self, window: Window) -> AbstractContextManager[GdalBands]:
        """The raster, or at least this window of it, as a GDAL dataset."""


@contextmanager
def as_read_errors(file: RasterFile) -> Iterator[None]:
    """Re-raise a failure to read pixels as an UnreadableError that names the file."""
    try:
        yield
    except RasterioIOError as error:
        raise unreadable(file, error.__cause__ or error) from error


def unreadable(file: RasterFile, error: BaseException) -> UnreadableError:
    """The error for a file that cannot be read because of `error`."""
    return UnreadableError(
        f"{file}: cannot be read ({storage.without_queries(str(error))}); the file is damaged, truncated or "
        "unreachable. Copy or download it again, or remove it from the configuration."
    )


def with_crs(file: RasterFile, grid: GeoBox) -> GeoBox:
    """A file's grid, with the CRS that the configuration states for a file that states none.

    Raises:
        InputError: the file states another one, or no position that a CRS could apply to; or it is not a CRS.
    """
    if file.crs is None:
        return _with_stated_crs(file, grid)
    try:
        stated = CRS.from_user_input(file.crs)
    except CRSError as error:
        raise InputError(f"{file}: `crs` {file.crs!r} is not a CRS ({error}); give, for example, EPSG:32633.") from error
    if grid.crs is None:
        if grid.affine == Affine.identity():
            raise InputError(
                f"{file}: `crs` cannot place it, because the file states no position either (no geotransform and no "
                "coordinates); georeference it first, for example with `gdal_translate -a_srs ... -a_ullr ...`."
            )
        return GeoBox(grid.shape, grid.affine, rasterio.crs.CRS.from_wkt(stated.to_wkt()).to_wkt())
    own = CRS.from_wkt(grid.crs.to_wkt())
    if not own.equals(stated, ignore_axis_order=True) and (own.to_epsg() or -1) != stated.to_epsg():
        raise InputError(
            f"{file}: `crs` is {stated.name} ({file.crs}), but the file states {own.name}; remove `crs`, or fix the file."
        )
    return grid


def _with_stated_crs(file: RasterFile, grid: GeoBox) -> GeoBox:
    if file.stated_crs is None or grid.crs is not None or grid.affine == Affine.identity():
        return grid
    try:
        stated = CRS.from_user_input(file.stated_crs)
    except CRSError as error:
        raise InputError(
            f"{file}: has no CRS, and that of its STAC item, {file.stated_crs!r}, is not one ({error}); give the right one "
            "as `crs`."
        ) from error
    return GeoBox(grid.shape, grid.affine, rasterio.crs.CRS.from_wkt(stated.to_wkt()).to_wkt())


def stated_band(file: RasterFile, band: int, count: int) -> StatedBand:
    """Return what a catalogue states about a band, numbered from 1, of a file with `count` of them.

    Raises:
        InputError: it describes another number of bands.
    """
    if not file.stated:
        return StatedBand()
    if len(file.stated) not in (1, count):
        raise InputError(
            f"{file}: has {count} bands, but its STAC item describes {len(file.stated)}; correct the item, or list the file "
            "with `urls` or `tiles`."
        )
    return file.stated[0] if len(file.stated) == 1 else file.stated[band - 1]


def agreed_nodata(file: RasterFile, declared: float | None, band: StatedBand, dtype: np.dtype[Any]) -> float | None:
    """Return the nodata value that a file and a catalogue declare; one that the data type cannot hold does not count.

    Raises:
        InputError: they declare different ones, or the catalogue one that is not a number.
    """
    band.check(file, "nodata")
    stated = band.nodata
    if band.nodata_is_default and declared is not None:
        return declared
    if stated is None or math.isnan(stated) or (dtype.kind != "f" and not dtype_holds(dtype, stated)):
        return declared
    if declared is None or math.isnan(declared):
        return stated
    if _same_nodata(declared, stated, dtype):
        return declared
    raise InputError(
        f"{file}: nodata is {declared:g} in the file, but {stated:g} in its STAC item; give the right value as `nodata`."
    )


def _same_nodata(first: float, second: float, dtype: np.dtype[Any]) -> bool:
    """Whether two nodata values are one of a data type; the largest float is cut differently by different software."""
    if dtype.kind != "f":
        return first == second
    largest = 0.9 * float(np.finfo(np.float32).max)
    if abs(first) > largest and abs(second) > largest:
        return (first > 0) == (second > 0)
    return math.isclose(first, second, rel_tol=1e-6)


def agreed_scaling(file: RasterFile, gain: float, offset: float, stated: StatedBand) -> tuple[float, float]:
    """Return the scale and offset that a file (1 and 0: none) and a catalogue declare.

    Raises:
        InputError: they are to be applied, and differ, or are no numbers.
    """
    if file.unscale:
        stated.check(file, "scale", "offset")
    if stated.undecided and file.unscale and (gain, offset) == (1, 0):
        raise InputError(
            f"{file}: has values of Sentinel-2 whose offset depends on the processing baseline, but its STAC item states "
            "neither that nor an offset; give `gain` and `offset` instead of `unscale`."
        )
    if stated.gain is None or stated.offset is None:
        return gain, offset
    if stated.gain == 0 and file.unscale:
        raise InputError(f"{file}: its STAC item states a scale of 0, which would make all values equal; correct the item.")
    found = (stated.gain, stated.offset)
    agree = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for a, b in zip(found, (gain, offset), strict=True))
    if not (stated.decided or agree or (gain, offset) == (1, 0)) and file.unscale:
        raise InputError(
            f"{file}: has scale {gain:g} and offset {offset:g}, but its STAC item states {stated.gain:g} and "
            f"{stated.offset:g}; give the right ones as `gain` and `offset`, without `unscale`."
        )
    return found


def dtype_holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether an integer or boolean type can represent a value."""
    lowest, highest = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    # As Python integers: a 64-bit limit compared with a float would be rounded.
    return bool(np.isfinite(value)) and int(lowest) <= int(value) <= int(highest) and value == int(value)


def chosen_bands(file: RasterFile, count: int) -> list[int]:
    """The numbers of the selected bands."""
    chosen = list(range(1, count + 1)) if file.bands is None else list(file.bands)
    beyond = [str(b) for b in chosen if not 1 <= b <= count]
    if beyond:
        raise InputError(f"{file}: has no band {', '.join(beyond)}; its bands are 1 to {count}.")
    return chosen


def masked_data(values: NDArray[Any], nodata: Sequence[Sequence[float]]) -> NDArray[np.bool_]:
    """Where (y, x) all bands (band, y, x) are valid: finite and equal to none of their nodata values.

    Values must be those of the file, before any scale or offset: they are compared in the file's own data type.
    """
    valid = np.ones(values.shape[1:], bool)
    for band, absent in zip(values, nodata, strict=True):
        if band.dtype.kind == "f":
            valid &= np.isfinite(band)
        for value in absent:
            valid &= ~_equals(band, value)
    return valid


def _equals(band: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Where a band equals a nodata value, as the nearest value of the band's data type; nowhere if that cannot hold it."""
    dtype = band.dtype
    if dtype.kind != "f":
        return band == np.array(int(value), dtype) if dtype_holds(dtype, value) else np.zeros(band.shape, bool)
    if not np.isfinite(value):
        return np.zeros(band.shape, bool)  # what is not finite is never valid
    for largest in (np.finfo(np.float32).max, np.finfo(np.float64).max):
        low, high = np.float64(0.9) * largest, float(largest) * 1.001
        if low < abs(value) < high:
            # The largest float, whose digits headers cut differently: -3.4e38, -3.40282e38, -3.4028235e38.
            same_sign = np.float64(np.sign(value)) * band
            return np.asarray((same_sign > low) & (same_sign < np.float64(high)))
    with np.errstate(over="ignore"):  # a float64 nodata value beyond the range of a float32 file
        return np.asarray(band == np.float64(value).astype(dtype))


def warped_dtype(dtypes: Sequence[str]) -> str:
    """The float type for resampled values: float64 for integers that need more than 24 bits, otherwise float32."""
    return "float64" if np.result_type(*dtypes, np.float32) == np.float64 and "float64" not in dtypes else "float32"


def stored_dtype(dtypes: Sequence[str]) -> np.dtype[Any]:
    """The dtype that stores values of all these types: integers of up to 16 bits unchanged, anything else as float32."""
    common = np.result_type(*dtypes)
    if common.kind == "b":
        return np.dtype(np.uint8)
    return common if common.kind in "iu" and common.itemsize <= 2 else np.dtype(np.float32)


@contextmanager
def in_memory(raster: OpenRaster, window: Window) -> Iterator[GdalBands]:
    """Copy a window of a raster to an in-memory float dataset, NaN where there is no data."""
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
            yield GdalBands(dataset, range(1, len(values) + 1), np.nan)
