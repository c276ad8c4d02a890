"""Raster files that GDAL reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window as GdalWindow

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.io import gdal, storage
from pipeline.rasters.complete import check_complete
from pipeline.rasters.header import (
    GdalBands,
    Header,
    RasterFile,
    as_read_errors,
    chosen_bands,
    dtype_holds,
    in_memory,
    masked_data,
)
from pipeline.rasters.untrusted import check_contained, open_dataset


@contextmanager
def open_gdal(file: RasterFile) -> Iterator[GdalRaster]:
    """Open a file with GDAL for as long as the context lasts."""
    gdal.configure_gdal()
    try:
        dataset = open_dataset(file.url, _gdal_name(file))
    except RasterioIOError as error:
        if storage.is_local(file.url) and not storage.exists(file.url):
            raise InputError(f"{file.url}: no such file; check the path in the configuration.") from error
        raise InputError(f"{file}: cannot be read as a raster ({storage.without_queries(str(error))}).") from error
    with dataset:
        if dataset.count == 0 and dataset.subdatasets:
            names = ", ".join(name.rsplit(":", 1)[-1].strip("/") for name in dataset.subdatasets[:20])
            raise InputError(f"{file}: contains several arrays; select one with `variable`: {names}.")
        if dataset.gcps[0] and dataset.crs is None:
            raise InputError(
                f"{file}: is georeferenced by ground control points only; warp it to a grid first, e.g. with `gdalwarp`."
            )
        yield GdalRaster(file, dataset)


def _gdal_name(file: RasterFile) -> str:
    name = gdal.gdal_path(file.url)
    if file.variable is None:
        return name
    driver = "NETCDF" if file.url.lower().endswith((".nc", ".nc4", ".cdf")) else "HDF5"
    return f'{driver}:"{name}":{"//" if driver == "HDF5" else ""}{file.variable.lstrip("/")}'


class GdalRaster:
    """A raster opened by GDAL."""

    def __init__(self, file: RasterFile, dataset: DatasetReader) -> None:
        self.file, self._dataset = file, dataset
        self.indexes = chosen_bands(file, dataset.count)
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
            rpcs=dataset.rpcs is not None,
        )
        self._unscale = unscale
        self._dtype = np.result_type(*(dataset.dtypes[i] for i in at))
        # Validity is given by a mask band, per dataset or per band (which has no flag), or by an alpha band.
        flags = [dataset.mask_flag_enums[i] for i in at]
        self._masked = any(MaskFlags.per_dataset in band_flags or not band_flags for band_flags in flags)

    def _check_kind(self) -> None:
        for index in self.indexes:
            if self._dataset.colorinterp[index - 1] == ColorInterp.alpha:
                raise InputError(
                    f"{self.file}: band {index} is tagged as transparency (alpha). Leave it out with `bands`: pixels "
                    f"where it is 0 are then treated as no data. If it is a sensor's band, remove the tag with "
                    f"`gdal_translate -colorinterp_{index} undefined`."
                )
            if self._dataset.dtypes[index - 1].startswith("complex"):
                raise InputError(f"{self.file}: holds complex numbers; convert them to amplitude or intensity first.")

    def check_complete(self) -> None:
        """Check that the file is not truncated and contains its own pixels; raise InputError otherwise."""
        check_contained(self.file.url, self._dataset.driver)
        if self.file.variable is None:
            check_complete(self.file.url, self._dataset)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `OpenRaster.read`."""
        gdal_window = GdalWindow(window.x, window.y, window.width, window.height)
        with as_read_errors(self.file):
            values = self._read(gdal_window)
            valid = masked_data(values, self.header.nodata)
            if self._masked:
                valid &= (self._dataset.read_masks(self.indexes, window=gdal_window) != 0).all(axis=0)
        return self._physical(values), valid

    def _read(self, gdal_window: GdalWindow) -> NDArray[Any]:
        if len({self._dataset.dtypes[i - 1] for i in self.indexes}) == 1:
            return np.asarray(self._dataset.read(self.indexes, window=gdal_window))
        # rasterio cannot read bands of different types in one call
        return np.stack([self._dataset.read(i, window=gdal_window).astype(self._dtype) for i in self.indexes])

    def _physical(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self._unscale:
            return values
        gains, offsets = (np.array(v, np.float32)[:, None, None] for v in (self.header.gains, self.header.offsets))
        return np.asarray(values * gains + offsets, np.float32)

    @contextmanager
    def dataset(self, window: Window) -> Iterator[GdalBands]:
        """See `OpenRaster.dataset`."""
        # A GDAL view would miss this: float data with a finite nodata value may also contain NaN.
        undeclared = self._dtype.kind == "f" and any(n is not None and np.isfinite(n) for n in self.header.nodata)
        if self._masked or self._unscale or undeclared or len(set(map(str, self.header.nodata))) > 1:
            with in_memory(self, window) as copy:
                yield copy
            return
        nodata = self.header.nodata[0]
        if nodata is not None and self._dtype.kind in "iu" and not dtype_holds(self._dtype, nodata):
            nodata = None  # outside the range of the type: no pixel has it
        if self._dtype.kind == "f":
            nodata = np.nan
        with as_read_errors(self.file):
            yield GdalBands(self._dataset, self.indexes, nodata)  # GDAL reads only what it needs
