"""Sources as a person declares them, opened lazily on the reference grid. rioxarray over GDAL's warped views.

A source comes out as (band, y, x) in float32 with NaN where it has no data, in Dask chunks: nothing
is read until a chunk is asked for, and then only the window of the files that it needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import dask.array as da
import numpy as np
import rasterio
import rioxarray
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from mibf.errors import InputError
from pipeline import storage
from pipeline.grid import same_grid

#: What becomes of a pixel where this source has no data: left out, or taken with the training median.
Missing = Literal["exclude", "fill"]


@dataclass(frozen=True)
class Source:
    """A sensor's raster as declared: one multiband file or several, their bands in order."""

    name: str
    urls: tuple[str, ...]
    resampling: str = "bilinear"
    nodata: float | None = None
    missing: Missing = "exclude"


@dataclass(frozen=True)
class OpenSource:
    """A source on the reference grid."""

    declared: Source
    values: xr.DataArray  #: (band, y, x) float32, NaN where there is no data; Dask chunks of whole bands
    dtype: np.dtype[Any]  #: what its values are stored as without loss
    resampled: bool


@contextmanager
def open_raster(url: str) -> Iterator[DatasetReader]:
    """A raster file opened by GDAL.

    Raises:
        InputError: it is not there, or GDAL cannot read it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            dataset = rasterio.open(url)
        except RasterioIOError as error:
            if storage.is_local(url) and not storage.exists(url):
                raise InputError(f"{url}: no such file; check the path in the configuration.") from error
            raise InputError(f"{url}: cannot be read as a raster ({error}).") from error
        with dataset:
            yield dataset


def grid_of(dataset: DatasetReader) -> GeoBox:
    """The grid that a raster file is on; without a CRS where the file has none."""
    return GeoBox((dataset.height, dataset.width), dataset.transform, dataset.crs and dataset.crs.to_wkt())


def reference_grid(like: Source) -> GeoBox:
    """The grid of a source's first file."""
    with open_raster(like.urls[0]) as dataset:
        return grid_of(dataset)


def check_placed(url: str, dataset: DatasetReader, grid: GeoBox) -> None:
    """See that a raster can be brought to the grid.

    Raises:
        InputError: it has no CRS and is not on the grid already, or does not overlap it.
    """
    own = grid_of(dataset)
    if same_grid(own, grid):
        return
    if own.crs is None or grid.crs is None:
        which = "has no CRS" if own.crs is None else "has a CRS but the reference grid has none"
        raise InputError(
            f"{url}: {which}, and its grid ({own.shape[0]} x {own.shape[1]} pixels) is not the reference grid "
            f"({grid.shape[0]} x {grid.shape[1]}); assign a CRS first, for example with `rio edit-info --crs`."
        )
    # The grid is brought to the file's CRS, not the reverse: a file of the whole world fits no projected CRS.
    inside = _extent_in(grid, dataset.crs)
    extent = own.boundingbox
    if inside is None or not (
        inside[0] < extent.right and extent.left < inside[2] and inside[1] < extent.top and extent.bottom < inside[3]
    ):
        place = "cannot be brought there"
        if inside is not None:
            place = f"is at x {inside[0]:.6g} to {inside[2]:.6g}, y {inside[1]:.6g} to {inside[3]:.6g}"
        raise InputError(
            f"{url}: does not overlap the reference grid. In the file's CRS it spans x {extent.left:.6g} to "
            f"{extent.right:.6g}, y {extent.bottom:.6g} to {extent.top:.6g}; the grid {place}. "
            "Check the file and the scene's grid."
        )


def _extent_in(grid: GeoBox, crs: Any) -> tuple[float, float, float, float] | None:
    """Left, bottom, right and top of a grid in another CRS; None where it has no place there."""
    box = grid.boundingbox
    try:
        left, bottom, right, top = transform_bounds(grid.crs.to_wkt(), crs, *box, densify_pts=21)
    except CPLE_BaseError:
        return None
    if not np.isfinite([left, bottom, right, top]).all():
        return None
    if left > right:  # across the antimeridian: anywhere along x
        left, right = -np.inf, np.inf
    return left, bottom, right, top


def warped(dataset: DatasetReader, grid: GeoBox, *, resampling: str, nodata: float | None) -> WarpedVRT:
    """A lazy view of a raster on the grid, float32 with NaN where there is no data.

    GDAL warps it block by block on the grid, so that a pixel's value does not depend on the window read.
    """
    placement: dict[str, Any] = {"transform": grid.affine, "width": grid.shape[1], "height": grid.shape[0]}
    if grid.crs is not None:
        placement["crs"] = grid.crs.to_wkt()
    return WarpedVRT(
        dataset,
        **placement,
        resampling=Resampling[resampling],
        src_nodata=dataset.nodata if nodata is None else nodata,
        nodata=np.nan,
        dtype="float32",
        UNIFIED_SRC_NODATA="NO",  # otherwise a pixel is missing only where it is missing in all bands
    )


def open_source(source: Source, grid: GeoBox, *, chunk: int) -> OpenSource:
    """Open a source on the reference grid, in chunks of `chunk` x `chunk` pixels of all its bands.

    Files that are on the grid already are read as they are; others are reprojected and resampled
    in windows.

    Raises:
        InputError: a file is missing, unreadable, without a CRS where one is needed, or elsewhere.
    """
    layers, dtypes, resampled = [], [], False
    for url in source.urls:
        with open_raster(url) as dataset:
            check_placed(url, dataset, grid)
            _check_kind(url, dataset)
            aligned = same_grid(grid_of(dataset), grid)
            resampled |= not aligned
            dtypes += list(dataset.dtypes)
            if aligned and grid.crs is None:
                layers.append(_unplaced(url, source.nodata, chunk))
                continue
            resampling = "nearest" if aligned else source.resampling
            with warped(dataset, grid, resampling=resampling, nodata=source.nodata) as view:
                layers.append(open_lazily(view, chunk))
    values = layers[0] if len(layers) == 1 else xr.concat(layers, dim="band", coords="minimal", compat="override")
    values = values.chunk({"band": -1})
    return OpenSource(source, values, _stored_dtype(dtypes, resampled and source.resampling != "nearest"), resampled)


def _check_kind(url: str, dataset: DatasetReader) -> None:
    if ColorInterp.alpha in dataset.colorinterp:
        band = dataset.colorinterp.index(ColorInterp.alpha) + 1
        raise InputError(
            f"{url}: band {band} is tagged as transparency (alpha). If it is a sensor's band, untag it with `gdal_translate "
            f"-colorinterp_{band} undefined`; if it is transparency, leave it out with `-b` and set a nodata value."
        )
    if any(dtype.startswith("complex") for dtype in dataset.dtypes):
        raise InputError(f"{url}: holds complex numbers; take their amplitude or intensity first.")


@contextmanager
def reading() -> Iterator[None]:
    """Turn a failure to read pixels, far from where a file was opened, into a refusal.

    Raises:
        InputError: names the file, as far as GDAL tells it.
    """
    try:
        yield
    except RasterioIOError as error:
        raise InputError(
            f"{error.__cause__ or error}: the file is damaged or cut short; get it again, or leave it out."
        ) from error


def open_lazily(view: WarpedVRT | str, chunk: int) -> xr.DataArray:
    """A raster as a chunked (band, y, x) array, float32 with NaN where there is no data."""
    array = rioxarray.open_rasterio(view, chunks={"band": -1, "y": chunk, "x": chunk}, masked=True, lock=False)
    assert isinstance(array, xr.DataArray)
    return array.drop_vars([name for name in array.coords if name != "spatial_ref"]).astype(np.float32)


def _unplaced(url: str, nodata: float | None, chunk: int) -> xr.DataArray:
    """An image without a CRS: GDAL has no warped view of it, and none is needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        array = open_lazily(url, chunk)
    return array if nodata is None else array.where(array != nodata)


def _stored_dtype(dtypes: list[str], interpolated: bool) -> np.dtype[Any]:
    """Integers of up to 16 bits as they are when no value was interpolated; everything else as float32."""
    common = np.result_type(*dtypes)
    if not interpolated and common.kind in "iu" and common.itemsize <= 2:
        return common
    return np.dtype(np.float32)


def validity(values: da.Array) -> da.Array:
    """Where a source has data in all its bands: (band, y, x) -> (y, x)."""
    return da.isfinite(values).all(axis=0)
