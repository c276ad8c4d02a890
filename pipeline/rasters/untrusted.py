"""Guards for untrusted input files: no access to other local files, no network requests, no code execution.

Formats that contain only pixels are safe. Others can reference files: a virtual raster (VRT) of a few lines turns the
bytes of any file into an image, an HDF5 file may store its values in another file, and a Zarr array may be encoded as
pickles (refused by `pipeline.io.zarr_store`). GDAL detects a format by content, so any of these may be named `image.tif`.

Files on the web or in a bucket are opened only in formats that cannot reference other files. Local files in a referencing
format are accepted if their extension declares it: they are lists of files that a user put there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from functools import cache
from typing import Any
from xml.etree import ElementTree

import h5py
import rasterio
from rasterio.env import ensure_env_with_credentials
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader

from mibf.errors import InputError
from pipeline.io import gdal, storage

#: GDAL drivers whose files contain their own pixels, in one file or in sidecar files of the same name.
CONTAINED = (
    "GTiff", "SNAP_TIFF", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID", "HFA", "ENVI", "EHdr", "ISCE", "ROI_PAC", "RRASTER",
    "netCDF", "HDF5", "HDF5Image", "BAG", "GRIB", "NITF", "GPKG", "AAIGrid", "GSAG", "GSBG", "GS7BG", "SAGA", "SRTMHGT",
    "DTED", "USGSDEM", "PNG", "JPEG", "WEBP", "GIF", "BMP",
)  # fmt: skip  # a list of names: one per line would fill a page
#: Drivers whose files reference others, with the extensions that declare them; opened only locally with such an extension.
NAMING = {"VRT": (".vrt",), "MRF": (".mrf",)}
#: Drivers that send network requests or locate files by their own rules: never opened.
NEVER = {
    "DAAS", "DERIVED", "EEDA", "EEDAI", "ESRIC", "GDALG", "GTI", "HTTP", "KMLSUPEROVERLAY", "NGW", "OGCAPI", "OZI",
    "PLMOSAIC", "STACIT", "STACTA", "TileDB", "WCS", "WMS", "WMTS",
}  # fmt: skip  # a list of names: one per line would fill a page
#: HDF5-based drivers, where a dataset's values may be stored in another file.
HDF5 = {"HDF5", "HDF5Image", "netCDF", "BAG", "S102", "S104", "S111", "KEA"}
#: GDAL vector drivers whose files reference no others.
VECTORS = {
    "ESRI Shapefile", "FlatGeobuf", "GML", "GPKG", "GPX", "GeoJSON", "GeoJSONSeq", "KML", "LIBKML", "MapInfo File",
    "OpenFileGDB", "TopoJSON",
}  # fmt: skip  # a list of names: one per line would fill a page
#: Vector drivers that reference other files, accepted only locally with these extensions.
NAMING_VECTORS = {"OGR_VRT": (".vrt",)}
#: Vector drivers that send network requests or reference other files: never accepted.
NEVER_VECTORS = {
    "ADBC", "AmigoCloud", "CSW", "Carto", "EEDA", "Elasticsearch", "GDALG", "HTTP", "NGW", "OAPIF", "OGCAPI", "PLSCENES",
    "WFS",
}  # fmt: skip  # a list of names: one per line would fill a page
#: Maximum bytes of a virtual raster; enough for a few hundred thousand files.
MAX_BYTES = 256 * 1024 * 1024


def open_dataset(url: str, name: str) -> DatasetReader:
    """Open the GDAL dataset at a URL, in a format that is allowed at its location. `name` is its name for GDAL.

    Raises:
        RasterioIOError: it cannot be opened.
        InputError: its format references other files and is not accepted.
    """
    try:
        dataset = _open(name, list(_drivers(url)))
    except RasterioIOError as error:
        if _looks_like_vrt(url):
            raise InputError(
                f"{storage.redact_url(url)}: is a virtual raster (VRT), which can read any file of this machine, and is "
                "accepted only as a local file whose name ends in .vrt. List the files that it references with `tiles` or "
                "`urls`, or inspect it and save it locally."
            ) from error
        raise
    try:
        if dataset.driver == "VRT":
            _check_vrt(url)
        _check_overviews(url, dataset)
    except BaseException:
        dataset.close()
        raise
    return dataset


@ensure_env_with_credentials  # type: ignore[untyped-decorator]  # as rasterio.open does, which accepts only one driver
def _open(name: str, drivers: list[str]) -> DatasetReader:
    return DatasetReader(name, driver=drivers)


def _drivers(url: str) -> Sequence[str]:
    if not storage.is_local(url):
        return CONTAINED
    named = tuple(driver for driver, ends in NAMING.items() if url.lower().endswith(ends))
    return tuple(driver for driver in _every_driver() if driver not in NAMING) + named


@cache
def _every_driver() -> tuple[str, ...]:
    with rasterio.Env() as env:
        return tuple(sorted(set(env.drivers()) - NEVER))


def _looks_like_vrt(url: str) -> bool:
    try:
        filesystem, path = storage.open_url(url)
        return b"<VRTDataset" in filesystem.cat_file(path, start=0, end=1024)
    except Exception:  # unreadable, which the caller reports
        return False


def _check_vrt(url: str) -> None:
    """Check that a virtual raster reads raw bytes only from its own folder or below, as later versions of GDAL do."""
    try:
        root = ElementTree.fromstring(storage.read_at_most(url, MAX_BYTES))
    except ElementTree.ParseError as error:
        raise InputError(f"{url}: cannot be read as a virtual raster ({error}).") from error
    for band in root.iter("VRTRasterBand"):
        for source in band.iter("SourceFilename"):
            name = (source.text or "").strip()
            if name.startswith("<"):
                raise InputError(f"{url}: contains a nested virtual raster; save the inner one as a separate file.")
            raw = band.get("subClass") == "VRTRawRasterBand"
            if raw and not (source.get("relativeToVRT") == "1" and _is_below(name)):
                raise InputError(
                    f"{url}: reads raw pixels from {name} (VRTRawRasterBand), which is in another folder; move it next "
                    'to the virtual raster and reference it with relativeToVRT="1".'
                )


def _check_overviews(url: str, dataset: DatasetReader) -> None:
    """Check that a raster's overviews are in its folder or below: its sidecar file, `.aux.xml`, may reference others."""
    name = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE", "").removeprefix(":::BASE:::")
    if name and not _is_below(name):
        raise InputError(
            f"{storage.redact_url(url)}: its .aux.xml references overviews in another folder, {name}; delete it."
        )


def _is_below(name: str) -> bool:
    """Whether a name refers to a file in the same folder or below."""
    return not (posixpath.isabs(name) or ".." in name.split("/") or ":" in name or "\\" in name)


def open_published(url: str, *, overview_level: int | None = None) -> DatasetReader:
    """Open a raster of a published map: a GeoTIFF, or the virtual raster over its pieces in the same folder.

    With `overview_level` the dataset is that overview, 0 for the finest.

    Raises:
        RasterioIOError: it cannot be opened.
        InputError: it references files that are not its pieces.
    """
    if url.endswith(".vrt"):
        product = posixpath.basename(url).removesuffix(".vrt")
        named = re.findall(rb"<Source(?:Filename|Dataset)\b[^>]*>([^<]*)<", storage.read_at_most(url, MAX_BYTES))
        foreign = [name.decode(errors="replace") for name in named if not re.fullmatch(rb"\w+_y\d+_x\d+\.tif", name)]
        if foreign:
            raise InputError(
                f"{storage.redact_url(url)}: references {foreign[0]}, which is not a piece of {product}; "
                "run `mibf map` again."
            )
    gdal.configure_gdal()
    gdal.drop_cached(gdal.gdal_path(url), "rasterio")  # a map is published again under the same names
    options = {} if overview_level is None else {"overview_level": overview_level}
    dataset = rasterio.open(gdal.gdal_path(url), driver="VRT" if url.endswith(".vrt") else "GTiff", **options)
    try:
        _check_overviews(url, dataset)
    except BaseException:
        dataset.close()
        raise
    return dataset


def check_vector_driver(url: str, driver: str) -> None:
    """Check that a vector file's format references no other files, or is allowed at its location.

    Raises:
        InputError: the format is not accepted.
    """
    ends = NAMING_VECTORS.get(driver)
    local = storage.is_local(url) and driver not in NEVER_VECTORS
    taken = driver in VECTORS or (local and (ends is None or url.lower().endswith(ends)))
    if not taken:
        raise InputError(
            f"{storage.redact_url(url)}: has format {driver}, which is not accepted from there: it could read other files "
            "or send network requests. Provide labels as GeoPackage, GeoJSON, FlatGeobuf or GeoParquet."
        )


def check_hdf5(url: str, file: h5py.File) -> None:
    """Check that an HDF5 file contains its own values: no external storage, external links or virtual datasets elsewhere.

    Raises:
        InputError: some values are in another file.
    """
    # h5py stops at the first result that is not None; the callbacks must not raise.
    found = file.visititems_links(_linked) or file.visititems(_external_file)
    if found is not None:
        name, where = found
        raise InputError(
            f"{storage.redact_url(url)}: {name} is stored in another file, {where}; provide a self-contained file, for "
            "example one written by `h5repack` or `nccopy`."
        )


def _linked(name: str, link: Any) -> tuple[str, str] | None:
    return (name, link.filename) if isinstance(link, h5py.ExternalLink) else None


def _external_file(name: str, item: Any) -> tuple[str, str] | None:
    """Name and external file of a dataset whose values are in another file; None otherwise."""
    if not isinstance(item, h5py.Dataset):
        return None
    files = [part[0] for part in item.external or ()]
    if item.is_virtual:
        files += [source.file_name for source in item.virtual_sources() if source.file_name != "."]
    return (name, str(files[0])) if files else None


def check_contained(url: str, driver: str) -> None:
    """Check that a file opened by a GDAL driver contains its own values, where its format does not guarantee it.

    Raises:
        InputError: some values are in another file.
    """
    if driver not in HDF5:
        return
    filesystem, path = storage.open_url(url)
    with filesystem.open(path, "rb") as handle:
        if handle.read(3) == b"CDF":
            return  # NetCDF before version 4, which is not HDF5
        handle.seek(0)
        with h5py.File(handle, "r") as file:
            check_hdf5(url, file)
