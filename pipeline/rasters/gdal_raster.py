"""Raster files that GDAL reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import numpy as np
import rasterio.shutil
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window as GdalWindow

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.io import gdal, storage
from pipeline.rasters.complete import check_complete
from pipeline.rasters.header import (
    DamagedError,
    GdalBands,
    Header,
    RasterFile,
    agreed_nodata,
    agreed_scaling,
    as_read_errors,
    chosen_bands,
    dtype_holds,
    in_memory,
    masked_data,
    stated_band,
    with_crs,
)
from pipeline.rasters.untrusted import check_contained, open_dataset

#: Ends of the names of files that may hold several images, selected by number.
PAGED = (".tif", ".tiff", ".ntf", ".nitf", ".nsf")


@contextmanager
def open_gdal(file: RasterFile) -> Iterator[GdalRaster]:
    """Open a file with GDAL for as long as the context lasts."""
    if file.select:
        raise InputError(f"{file}: `select` applies to arrays of Zarr, NetCDF, HDF5 and MATLAB files; use `bands` instead.")
    gdal.configure_gdal()
    gdal.forget_other_versions(gdal.gdal_path(file.url), file.stamp)
    try:
        dataset = open_dataset(file.url, gdal_name(file))
    except RasterioIOError as error:
        if storage.is_local(file.url) and not storage.exists(file.url):
            raise InputError(f"{file.url}: no such file; check the path.") from error
        kind = DamagedError if storage.answers(file.url) else InputError
        raise kind(f"{file}: cannot be read as a raster ({storage.without_queries(str(error))}).") from error
    with dataset:
        if dataset.count == 0 and dataset.subdatasets:
            names = [subdataset_name(name) for name in dataset.subdatasets]
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            raise InputError(f"{file}: contains several arrays; select one with `variable`: {', '.join(names[:20])}{more}.")
        if dataset.count == 0:
            raise InputError(f"{file}: holds no raster: no band, and no array of two or three axes.")
        if dataset.gcps[0] and dataset.crs is None:
            raise InputError(
                f"{file}: is georeferenced by ground control points only; warp it to a grid first, e.g. with `gdalwarp`."
            )
        yield GdalRaster(file, dataset)


def gdal_name(file: RasterFile) -> str:
    """GDAL's name of a file, or of its variable."""
    name = gdal.gdal_path(file.url)
    if file.variable is None:
        return name
    path = file.url.partition("?")[0].lower()
    if path.endswith(PAGED):
        if not file.variable.isdecimal():
            raise InputError(f"{file}: has no `variable` {file.variable!r}; select an image of the file by its number.")
        return f"{'GTIFF_DIR' if path.endswith(('.tif', '.tiff')) else 'NITF_IM'}:{file.variable}:{name}"
    if path.endswith(".gpkg"):
        return f'GPKG:"{name}":{file.variable}'
    driver = "NETCDF" if path.endswith((".nc", ".nc4", ".cdf")) else "HDF5"
    return f'{driver}:"{name}":{"//" if driver == "HDF5" else ""}{file.variable.lstrip("/")}'


def subdataset_name(name: str) -> str:
    """The `variable` that selects a GDAL subdataset, such as `HDF5:a.h5://group/band` or `GTIFF_DIR:2:a.tif`."""
    prefix, number, *_ = [*name.split(":"), ""]
    return number if prefix in ("GTIFF_DIR", "NITF_IM") else name.rsplit(":", 1)[-1].strip("/")


def _left_out(file: RasterFile, dataset: DatasetReader) -> str | None:
    """Describe the images of a file that is opened without naming one, beside the one that GDAL opens."""
    names = [subdataset_name(name) for name in dataset.subdatasets]
    if file.variable is not None or len(names) < 2:
        return None
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (
        f"{file} holds {len(names)} images, of which only the first is read; select one with `variable`: "
        + ", ".join(f'"{name}"' for name in names[:10])
        + more
    )


class GdalRaster:
    """A raster opened by GDAL."""

    def __init__(self, file: RasterFile, dataset: DatasetReader) -> None:
        self.file, self._dataset = file, dataset
        self.indexes = chosen_bands(file, dataset.count)
        self._check_kind()
        at = [i - 1 for i in self.indexes]
        crs = dataset.crs and dataset.crs.to_wkt()
        stated = [stated_band(file, i, dataset.count) for i in self.indexes]
        scaling = [
            agreed_scaling(file, float(dataset.scales[i]), float(dataset.offsets[i]), own)
            for i, own in zip(at, stated, strict=True)
        ]
        gains, offsets = (tuple(values) for values in zip(*scaling, strict=True))
        declared = _declared_nodata(dataset)
        unwritten = [value if _is_unwritten(dataset, i) else None for i, value in enumerate(declared)]
        if file.nodata is None:
            for i, own in zip(at, stated, strict=True):
                known = declared[i] if unwritten[i] is None else None
                found = agreed_nodata(file, known, own, np.dtype(dataset.dtypes[i]))
                declared[i] = unwritten[i] if found is None else found
        unscale = file.unscale and any(g != 1 or o != 0 for g, o in zip(gains, offsets, strict=True))
        self.header = Header(
            grid=with_crs(file, GeoBox((dataset.height, dataset.width), dataset.transform, crs)),
            dtypes=tuple("float32" if unscale else dataset.dtypes[i] for i in at),
            nodata=tuple(declared[i] if file.nodata is None else file.nodata for i in at),
            block=tuple(dataset.block_shapes[0]),
            gains=gains,
            offsets=offsets,
            rpcs=dataset.rpcs is not None,
            file_bands=dataset.count,
            left_out=_left_out(file, dataset),
        )
        self._unscale = unscale
        self._dtype = np.result_type(*(dataset.dtypes[i] for i in at))
        self._absent = [_absent_values(file, dataset, i, (declared[i], unwritten[i])) for i in at]
        # Validity is given by a mask band, per dataset or per band (which has no flag), by an alpha band, or by nodata
        # values of all bands together, which have both flags and which a configured nodata value overrides.
        flags = [dataset.mask_flag_enums[i] for i in at]
        # GDAL applies an alpha band only in files of two or four bands.
        self._alpha = [i for i, kind in enumerate(dataset.colorinterp, 1) if kind == ColorInterp.alpha]
        self._masked = bool(self._alpha) or any(
            not band_flags
            or (MaskFlags.per_dataset in band_flags and (file.nodata is None or MaskFlags.nodata not in band_flags))
            for band_flags in flags
        )

    def _check_kind(self) -> None:
        for index in self.indexes:
            if self._dataset.colorinterp[index - 1] == ColorInterp.alpha:
                raise InputError(
                    f"{self.file}: band {index} is tagged as transparency (alpha). Leave it out with `bands` (of labels: "
                    f"select another one with `band`): pixels where it is 0 are then treated as no data. If it is a "
                    f"sensor's band, remove the tag with "
                    f"`gdal_translate -colorinterp_{index} undefined`."
                )
            if self._dataset.dtypes[index - 1].startswith("complex"):
                raise InputError(f"{self.file}: holds complex numbers; convert them to amplitude or intensity first.")

    def check_complete(self) -> None:
        """Check that the file is not truncated and contains its own pixels; raise InputError otherwise."""
        check_contained(self.file.url, self._dataset.driver)
        if self.file.variable is None:
            try:
                check_complete(self.file.url, self._dataset)
            except InputError as error:
                raise DamagedError(str(error)) from error

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `OpenRaster.read`."""
        gdal_window = GdalWindow(window.x, window.y, window.width, window.height)
        with as_read_errors(self.file):
            values, valid = self._read(gdal_window)
            if self._masked:
                valid &= (self._dataset.read_masks(self.indexes, window=gdal_window) != 0).all(axis=0)
            if self._alpha:
                valid &= (self._dataset.read(self._alpha, window=gdal_window) != 0).all(axis=0)
        if not self._unscale:
            return values, valid
        physical = self._physical(values)
        return physical, valid & np.isfinite(physical).all(axis=0)

    def _read(self, gdal_window: GdalWindow) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values as stored, and where no band has one of its nodata values."""
        if len({self._dataset.dtypes[i - 1] for i in self.indexes}) == 1:
            values = np.asarray(self._dataset.read(self.indexes, window=gdal_window))
            return values, masked_data(values, self._absent)
        # rasterio cannot read bands of different types in one call; each is compared with nodata in its own type
        bands = [self._dataset.read(i, window=gdal_window) for i in self.indexes]
        masks = [masked_data(band[None], [absent]) for band, absent in zip(bands, self._absent, strict=True)]
        return np.stack([band.astype(self._dtype) for band in bands]), np.logical_and.reduce(masks)

    def _physical(self, values: NDArray[Any]) -> NDArray[Any]:
        gains, offsets = (np.array(v, np.float32)[:, None, None] for v in (self.header.gains, self.header.offsets))
        with np.errstate(over="ignore", invalid="ignore"):  # of values without data, and checked for the others
            return np.asarray(values * gains + offsets, np.float32)

    @contextmanager
    def dataset(self, window: Window) -> Iterator[GdalBands]:
        """See `OpenRaster.dataset`."""
        if self._masked or self._unscale or not self._viewable():
            with in_memory(self, window) as copy:
                yield copy
            return
        nodata = self._absent[0][0] if self._absent[0] else None
        if self._dtype.kind == "f":
            nodata = np.nan
        with as_read_errors(self.file):
            yield GdalBands(self._dataset, self.indexes, nodata)  # GDAL reads only what it needs

    def _viewable(self) -> bool:
        """Whether a GDAL view of the file finds the same valid pixels as `read`: one exact nodata value for all bands."""
        values = {value for absent in self._absent for value in absent}
        if any(len(absent) != len(values) for absent in self._absent):
            return False
        if self._dtype.kind == "f":
            return not any(np.isfinite(value) for value in values)  # the data may also contain NaN
        # A view compares with nodata as float32, which is exact for integers of up to 16 bits.
        return not values or (len(values) == 1 and self._dtype.itemsize <= 2)


def _is_unwritten(dataset: DatasetReader, band: int) -> bool:
    """Whether the nodata value of a band (from 0) is only what NetCDF has where nothing was written: none is stated."""
    return dataset.driver == "netCDF" and not {"_FillValue", "missing_value"} & dataset.tags(band + 1).keys()


def _absent_values(file: RasterFile, dataset: DatasetReader, band: int, declared: Sequence[float | None]) -> list[float]:
    """The nodata values of a band (from 0) that its data type can hold."""
    found = [value for value in declared if value is not None]
    if file.nodata is not None:
        found = [file.nodata]
    elif dataset.driver in ("netCDF", "HDF5Image"):  # CF allows several values and attributes; GDAL takes one value
        tags = dataset.tags(band + 1)
        for text in re.findall(r"[^{},\s]+", f"{tags.get('_FillValue', '')},{tags.get('missing_value', '')}"):
            found += _number(text)
    dtype = np.dtype(dataset.dtypes[band])
    return list(dict.fromkeys(value for value in found if dtype.kind == "f" or dtype_holds(dtype, value)))


def _number(text: str) -> list[float]:
    """The number that a text states, an int if it can be; empty if it states none."""
    for kind in (int, float):
        try:
            return [kind(text)]
        except ValueError:
            continue
    return []


def _declared_nodata(dataset: DatasetReader) -> list[float | None]:
    """The nodata value of each band; exact for 64-bit integers, which rasterio returns as floats or not at all."""
    declared = list(dataset.nodatavals)
    wide = [i for i in range(dataset.count) if dataset.dtypes[i] in ("int64", "uint64")]
    if not any(MaskFlags.nodata in dataset.mask_flag_enums[i] for i in wide):
        return declared
    with MemoryFile(ext=".vrt") as memory:  # a virtual copy states it in decimal digits
        rasterio.shutil.copy(dataset, memory.name, driver="VRT")
        bands = ElementTree.fromstring(memory.read()).findall("VRTRasterBand")
    for i in wide:
        text = bands[i].findtext("NoDataValue")
        declared[i] = next(iter(_number(text or "")), None)
    return declared
