"""Shared by all raster readers: the file as declared, its header, and errors that name it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader, MemoryFile

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.io import storage

Axis = Literal["band", "y", "x"]


@dataclass(frozen=True)
class RasterFile:
    """A raster as declared in the configuration: its URL and which part of it to read."""

    url: str
    variable: str | None = None  #: the array to read from a file with several (MATLAB, Zarr, NetCDF, HDF5)
    axes: tuple[Axis, ...] | None = None  #: order of the array's axes, if the file does not state it
    bands: tuple[int, ...] | None = None  #: bands to read, numbered from 1, in this order; None: all
    nodata: float | None = None  #: overrides the file's nodata value
    unscale: bool = False  #: apply the file's scale and offset

    def __str__(self) -> str:
        url = storage.redact_url(self.url)
        return url if self.variable is None else f"{url} ({self.variable})"


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


def dtype_holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether an integer type can represent a value."""
    limits = np.iinfo(dtype)
    return bool(np.isfinite(value)) and limits.min <= value <= limits.max and value == int(value)


def chosen_bands(file: RasterFile, count: int) -> list[int]:
    """The numbers of the selected bands."""
    chosen = list(range(1, count + 1)) if file.bands is None else list(file.bands)
    beyond = [str(b) for b in chosen if not 1 <= b <= count]
    if beyond:
        raise InputError(f"{file}: has no band {', '.join(beyond)}; its bands are 1 to {count}.")
    return chosen


def masked_data(values: NDArray[Any], nodata: Sequence[float | None]) -> NDArray[np.bool_]:
    """Where (y, x) all bands are valid: finite and not equal to their nodata value."""
    valid = np.ones(values.shape[1:], bool)
    floating = values.dtype.kind == "f"
    for band, absent in zip(values, nodata, strict=True):
        if floating:
            valid &= np.isfinite(band)
        if absent is None or not (np.isfinite(absent) if floating else dtype_holds(values.dtype, absent)):
            continue
        # Compare in the dtype of the values: a nodata value of -3.4e38 means the nearest float32.
        valid &= band != np.float64(absent).astype(band.dtype)
    return valid


def warped_dtype(dtypes: Sequence[str]) -> str:
    """The float type for resampled values: float64 for integers that need more than 24 bits, otherwise float32."""
    return "float64" if np.result_type(*dtypes, np.float32) == np.float64 and "float64" not in dtypes else "float32"


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
