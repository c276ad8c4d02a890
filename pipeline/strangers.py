"""What a stranger's file may not do: have other files of this machine read, servers asked, or code run.

Formats that are nothing but pixels cannot. But some files name others: a virtual raster (VRT) of a few lines makes an image
of any file's bytes, an HDF5 file may keep its values in another one, a Zarr array may be packed as pickles. GDAL tells a
format by the content, so that any of them may be called `image.tif`.

What lies on the web or in a bucket is opened by formats that name no other files. On a disk those that do are taken where
their name says what they are, as a list of files that a person put there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from functools import cache
from typing import Any
from xml.etree import ElementTree

import h5py
import numcodecs
import rasterio
from numcodecs.abc import Codec
from rasterio.env import ensure_env_with_credentials
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader

from mibf.errors import InputError
from pipeline import storage

#: GDAL's drivers of files that hold their own pixels, all in one file or beside it under the same name.
CONTAINED = (
    "GTiff", "SNAP_TIFF", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID", "HFA", "ENVI", "EHdr", "ISCE", "ROI_PAC", "RRASTER",
    "netCDF", "HDF5", "HDF5Image", "BAG", "GRIB", "NITF", "GPKG", "AAIGrid", "GSAG", "GSBG", "GS7BG", "SAGA", "SRTMHGT",
    "DTED", "USGSDEM", "PNG", "JPEG", "WEBP", "GIF", "BMP",
)  # fmt: skip
#: Those whose files name others, by the ends of the names that say so; they are opened on a disk, under such a name.
NAMING = {"VRT": (".vrt",), "MRF": (".mrf",)}
#: Those that ask servers, or gather files by rules of their own: never opened.
NEVER = {
    "DAAS", "DERIVED", "EEDA", "EEDAI", "ESRIC", "GDALG", "GTI", "HTTP", "KMLSUPEROVERLAY", "NGW", "OGCAPI", "OZI",
    "PLMOSAIC", "STACIT", "STACTA", "TileDB", "WCS", "WMS", "WMTS",
}  # fmt: skip
#: Drivers of HDF5, in which a dataset's values may lie in another file.
HDF5 = {"HDF5", "HDF5Image", "netCDF", "BAG", "S102", "S104", "S111", "KEA"}
#: GDAL's drivers of vector files that name no others.
VECTORS = {
    "ESRI Shapefile", "FlatGeobuf", "GML", "GPKG", "GPX", "GeoJSON", "GeoJSONSeq", "KML", "LIBKML", "MapInfo File",
    "OpenFileGDB", "TopoJSON",
}  # fmt: skip
#: Those that ask servers or name other files: taken on a disk alone, under a name that says so, or never.
NAMING_VECTORS = {"OGR_VRT": (".vrt",)}
NEVER_VECTORS = {
    "ADBC", "AmigoCloud", "CSW", "Carto", "EEDA", "Elasticsearch", "GDALG", "HTTP", "NGW", "OAPIF", "OGCAPI", "PLSCENES",
    "WFS",
}  # fmt: skip
#: Bytes of a virtual raster: some hundred thousand files.
MOST_BYTES = 256 * 1024 * 1024


def open_dataset(url: str, name: str) -> DatasetReader:
    """The dataset of GDAL's at a URL, whose name for GDAL is given, by the formats that are open to where it lies.

    Raises:
        RasterioIOError: it cannot be opened.
        InputError: it is of a format that names other files, and not taken.
    """
    try:
        dataset = _open(name, list(_drivers(url)))
    except RasterioIOError as error:
        if _begins_as_vrt(url):
            raise InputError(
                f"{storage.shown(url)}: is a virtual raster (VRT), which can have any file of this machine read, and is "
                "taken only from a disk, under a name that ends in .vrt. Give the files that it names with `tiles` or "
                "`urls`, or look at it and put it on a disk."
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


@ensure_env_with_credentials  # type: ignore[untyped-decorator]  # as rasterio.open does, which takes one driver alone
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


def _begins_as_vrt(url: str) -> bool:
    try:
        filesystem, path = storage.open_url(url)
        return b"<VRTDataset" in filesystem.cat_file(path, start=0, end=1024)
    except Exception:  # it cannot be read at all, which is told by who opened it
        return False


def _check_vrt(url: str) -> None:
    """See that a virtual raster takes raw bytes from files beside it or below alone, as later versions of GDAL do."""
    try:
        root = ElementTree.fromstring(storage.read_at_most(url, MOST_BYTES))
    except ElementTree.ParseError as error:
        raise InputError(f"{url}: cannot be read as a virtual raster ({error}).") from error
    for band in root.iter("VRTRasterBand"):
        for source in band.iter("SourceFilename"):
            name = (source.text or "").strip()
            if name.startswith("<"):
                raise InputError(f"{url}: a virtual raster within a virtual raster; put it in a file of its own.")
            raw = band.get("subClass") == "VRTRawRasterBand"
            if raw and not (source.get("relativeToVRT") == "1" and _below(name)):
                raise InputError(
                    f"{url}: takes the bytes of {name} for pixels (VRTRawRasterBand), which lies in another folder; put it "
                    'beside the virtual raster, and name it so, with relativeToVRT="1".'
                )


def _check_overviews(url: str, dataset: DatasetReader) -> None:
    """See that the smaller copies of a raster are its own: the file of notes beside it, `.aux.xml`, may name others."""
    name = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE", "").removeprefix(":::BASE:::")
    if name and not _below(name):
        raise InputError(f"{storage.shown(url)}: its .aux.xml names overviews in another folder, {name}; remove that file.")


def _below(name: str) -> bool:
    """Whether a name is one of a file in the same folder or below."""
    return not (posixpath.isabs(name) or ".." in name.split("/") or ":" in name or "\\" in name)


def open_published(url: str) -> DatasetReader:
    """A raster of a published map: a GeoTIFF, or the virtual raster over its pieces, all beside it.

    Raises:
        RasterioIOError: it cannot be opened.
        InputError: it names files that are none of its pieces.
    """
    if url.endswith(".vrt"):
        product = posixpath.basename(url).removesuffix(".vrt")
        named = re.findall(rb"<Source(?:Filename|Dataset)\b[^>]*>([^<]*)<", storage.read_at_most(url, MOST_BYTES))
        strange = [name.decode(errors="replace") for name in named if not re.fullmatch(rb"\w+_y\d+_x\d+\.tif", name)]
        if strange:
            raise InputError(
                f"{storage.shown(url)}: names {strange[0]}, which is no piece of {product}; run `mibf map` again."
            )
    dataset = rasterio.open(storage.gdal_path(url), driver="VRT" if url.endswith(".vrt") else "GTiff")
    try:
        _check_overviews(url, dataset)
    except BaseException:
        dataset.close()
        raise
    return dataset


def check_vector_driver(url: str, driver: str) -> None:
    """See that a vector file's format names no other files, or is open to where it lies.

    Raises:
        InputError: it is not.
    """
    ends = NAMING_VECTORS.get(driver)
    local = storage.is_local(url) and driver not in NEVER_VECTORS
    taken = driver in VECTORS or (local and (ends is None or url.lower().endswith(ends)))
    if not taken:
        raise InputError(
            f"{storage.shown(url)}: is of the format {driver}, which is not taken from there: it could have other files or "
            "servers read. Give labels as GeoPackage, GeoJSON, FlatGeobuf or GeoParquet."
        )


def check_hdf5(url: str, file: h5py.File) -> None:
    """See that an HDF5 file holds its values itself: none lie in another file, as bytes, by a link or by a virtual dataset.

    Raises:
        InputError: some do.
    """
    # h5py stops at the first that is not None; it bears no exception here.
    found = file.visititems_links(_linked) or file.visititems(_kept_elsewhere)
    if found is not None:
        name, where = found
        raise InputError(
            f"{storage.shown(url)}: {name} lies in another file, {where}; give a file that holds its values itself, for "
            "example as `h5repack` or `nccopy` writes it."
        )


def _linked(name: str, link: Any) -> tuple[str, str] | None:
    return (name, link.filename) if isinstance(link, h5py.ExternalLink) else None


def _kept_elsewhere(name: str, item: Any) -> tuple[str, str] | None:
    """The file that a dataset's values are in, if that is another one."""
    if not isinstance(item, h5py.Dataset):
        return None
    files = [part[0] for part in item.external or ()]
    if item.is_virtual:
        files += [source.file_name for source in item.virtual_sources() if source.file_name != "."]
    return (name, str(files[0])) if files else None


def check_contained(url: str, driver: str) -> None:
    """See that a file that GDAL opened by a driver holds its values itself, as far as its format leaves that open.

    Raises:
        InputError: it does not.
    """
    if driver not in HDF5:
        return
    filesystem, path = storage.open_url(url)
    with filesystem.open(path, "rb") as handle:
        if handle.read(3) == b"CDF":
            return  # NetCDF before version 4, which is no HDF5
        handle.seek(0)
        with h5py.File(handle, "r") as file:
            check_hdf5(url, file)


class _NoPickle(Codec):  # type: ignore[misc]  # numcodecs has no types
    """In the place of the codec that unpickles what it reads."""

    codec_id = "pickle"

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ValueError("values are packed as pickles, which could run any code; write the array again without")

    def encode(self, buf: Any) -> Any:
        """Never."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Never."""
        raise NotImplementedError


numcodecs.register_codec(_NoPickle)
