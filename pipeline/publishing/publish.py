"""Publish a map's files in place of an earlier map, so that readers never see a mixture; read published maps.

A map is published when its item, `item.json`, exists; the caller writes it once all files are in place. The order is:
build and verify every file in a staging folder; delete the earlier map's item; move the files into place; delete what is
left of the earlier map. A failure before the item is deleted leaves the earlier map unchanged.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.codes import RENAMED_PRODUCTS
from pipeline.grid import Window
from pipeline.io import gdal, storage
from pipeline.io.lease import Lease
from pipeline.maps.products import MAP_PRODUCTS, Product
from pipeline.publishing import cog
from pipeline.rasters.untrusted import open_published

#: The start of the names of staging folders, which end with the run's id, and the item; in the map's folder.
STAGING, ITEM = ".staging", "item.json"
#: File names of a map, for any products and blocks, those of earlier versions included.
_FILES = re.compile(rf"({'|'.join([*MAP_PRODUCTS, *RENAMED_PRODUCTS])})(_y\d+_x\d+)?\.(tif|tif\.aux\.xml|vrt)")
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Exceptions raised when GDAL cannot write.
_GDAL_ERRORS = (rasterio.errors.RasterioError, CPLE_BaseError, SystemError, cog.CogError)


class PublishError(RuntimeError):
    """A map could not be published, for the reason in the message; an earlier map is unchanged."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published map: a GeoTIFF of a product, or the VRT that mosaics its GeoTIFFs."""

    product: Product
    name: str  #: file name in the map's folder
    url: str
    window: Window  #: the part of the grid that the file covers
    bytes: int
    sha256: str


def publish(
    make_reader: Callable[[Product], cog.TileReader],
    products: Sequence[Product],
    folder: str,
    *,
    grid: GeoBox,
    classes: Sequence[ClassName],
    band_names: Callable[[Product], Sequence[str]],
    tags: dict[str, str],
    block: int,
    run: str,
    lease: Lease,
    each: Callable[[str], object] = lambda _: None,
) -> list[PublishedFile]:
    """Publish a map's products in a folder; the map counts as published once the caller has written its item there.

    On a local disk, files are built in the map's folder, so a full disk is detected while the earlier map is still intact.
    For an object store, each file is built in a temporary folder and uploaded, so the local disk holds one file at a time.

    Args:
        make_reader: returns the reader of a product's codes (band, y, x) in a window of the grid.
        products: products to publish; files of other products of an earlier map are deleted.
        folder: URL of the map's folder.
        grid: grid of the map.
        classes: provide the colours and names for products of class ids.
        band_names: returns the names of a product's bands.
        tags: provenance metadata written to each file.
        block: maximum side of a file in pixels, a multiple of 512; a larger grid is divided into blocks.
        run: id of the run, which names its staging folder.
        lease: checked before each step that cannot be undone.
        each: called with the name of each file that is built.

    Returns:
        The files, product by product, a VRT after the files it mosaics. The sidecar files,
        `NAME.tif.aux.xml`, with class names or a CRS, are not listed.

    Raises:
        PublishError: the disk is full.
        CogError: a file is not valid, or its pixels differ from those written.
        LeaseLostError: the workspace lease was lost; nothing is removed or replaced from then on.
    """
    gdal.configure_gdal()  # limits GDAL's cache, which by default grows to a fraction of the machine's memory
    staging = storage.join(folder, f"{STAGING}-{run}")
    with storage.folder_in_use(folder), _build_folder(folder, staging, lease) as build_folder:
        published, names = list[PublishedFile](), list[str]()
        for product in products:
            bands = band_names(product)
            for paths, window in _build_files(
                product, build_folder, make_reader(product), grid=grid, names=bands, classes=classes, tags=tags, block=block
            ):
                name = paths[0].name
                size, sha256 = _size_and_sha256(paths[0])
                published.append(PublishedFile(product, name, storage.join(folder, name), window, size, sha256))
                each(name)
                for path in paths:
                    names.append(path.name)
                    if not storage.is_local(staging):
                        storage.publish(str(path), storage.join(staging, path.name))
        _replace_published(folder, staging, names, lease)
        return published


def _replace_published(folder: str, staging: str, names: Sequence[str], lease: Lease) -> None:
    """Replace the map in a folder by the files in staging: delete its item, move the files, delete the rest of it."""
    lease.check()
    storage.remove(storage.join(folder, ITEM))
    for name in names:
        lease.check()
        storage.move_file(storage.join(staging, name), storage.join(folder, name))
    for name in sorted(set(storage.names(folder)) - set(names)):
        if _FILES.fullmatch(name):
            lease.check()
            storage.remove(storage.join(folder, name))


def _build_files(
    product: Product,
    folder: Path,
    read: cog.TileReader,
    *,
    grid: GeoBox,
    names: Sequence[str],
    classes: Sequence[ClassName],
    tags: dict[str, str],
    block: int,
) -> Iterator[tuple[list[Path], Window]]:
    """Build a product's files in a folder one by one; yield each with its sidecar file, and the window it covers."""
    rows, columns = grid.shape
    parts = cog.pieces(product.name, (rows, columns), block=block)
    for name, window in parts:
        pixels = window.height * window.width * len(names) * np.dtype(product.dtype).itemsize
        with _check_disk_space(folder, name, pixels=pixels):
            paths = cog.build(read, product, window, folder / name, grid=grid, names=names, classes=classes, tags=tags)
        yield paths, window
    if len(parts) > 1:
        path = folder / f"{product.name}.vrt"
        with _check_disk_space(folder, path.name):
            path.write_text(cog.vrt(parts, product, grid=grid, names=names, classes=classes, tags=tags), "utf-8")
        cog.check_crs(path, grid)
        yield [path], Window(0, 0, rows, columns)


@contextmanager
def _build_folder(published: str, staging: str, lease: Lease) -> Iterator[Path]:
    """Provide a local folder to build files for the staging URL; afterwards remove both, ignoring failures.

    Staging folders that killed runs left next to the published map are removed first.
    """
    for name in storage.names(published):
        if name.startswith(STAGING):
            lease.check()
            storage.remove(storage.join(published, name))
    try:
        with ExitStack() as stack:
            if storage.is_local(staging):
                folder = Path(storage.local_path(staging))
                with _check_disk_space(folder.parent, folder.name):
                    folder.mkdir(parents=True)
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mibf-")))
            yield folder
    finally:
        with suppress(Exception):  # keep the original exception; the next publication removes the folder
            storage.remove(staging)


@contextmanager
def _check_disk_space(folder: Path, name: str, *, pixels: int = 0) -> Iterator[None]:
    """Guard the writing of a file with `pixels` bytes of uncompressed pixels: turn errors of a full disk into one message.

    On a full disk GDAL raises many kinds of errors, few of which say so. They are treated as disk full if less space is
    left than the file may need: for its pixels, its overviews and GDAL's temporary files, twice the pixels.

    Raises:
        PublishError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL and not (isinstance(error, _GDAL_ERRORS) and _is_disk_nearly_full(folder, 2 * pixels)):
            raise
        cause: Exception = error
    except _GDAL_ERRORS as error:
        if not _is_disk_nearly_full(folder, 2 * pixels):
            raise
        cause = error
    else:
        return
    left = shutil.disk_usage(folder).free / 1e6
    raise PublishError(
        f"{folder}: the disk is full: {left:,.1f} MB are free, and {name} needs up to {2 * pixels / 1e6:,.1f} MB. Nothing "
        "was published; an earlier map is unchanged. Free some space, publish fewer products (map.products) or smaller ones "
        "(map.dtype: uint8), or use another disk (move the workspace, or set TMPDIR if the workspace is in an object "
        "store); then run `mibf map` again."
    ) from cause


def _is_disk_nearly_full(folder: Path, needed: int) -> bool:
    return shutil.disk_usage(folder).free < needed


def _size_and_sha256(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


class PublishedMap:
    """Reader of the map published in a folder (URL). Not thread-safe."""

    def __init__(self, folder: str) -> None:
        gdal.configure_gdal()
        self.folder = folder
        self._urls: dict[str, str] = {}

    def read(self, product: Product, window: Window, *, shape_yx: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read the codes of a product in a window of the grid, (band, height, width); decimated to `shape_yx` if given.

        Raises:
            InputError: the map does not have the product, or has it with another pixel type.
        """
        url = self._raster_url(product)
        # Without this option GDAL could return cached content of an earlier map's files of the same names.
        with rasterio.Env(CPL_VSIL_CURL_NON_CACHED=gdal.gdal_path(self.folder)), open_published(url) as dataset:
            if set(dataset.dtypes) != {product.dtype}:
                raise InputError(
                    f"{storage.redact_url(self.folder)}: {product.name} is stored as {dataset.dtypes[0]}, "
                    f"not as {product.dtype}; run `mibf map` again."
                )
            shape = None if shape_yx is None else (dataset.count, *shape_yx)
            return np.asarray(dataset.read(window=cog.rasterio_window(window), out_shape=shape))

    def _raster_url(self, product: Product) -> str:
        """The URL of a product's raster: its GeoTIFF, or the VRT over several."""
        if product.name not in self._urls:
            urls = [storage.join(self.folder, f"{product.name}.{suffix}") for suffix in ("tif", "vrt")]
            found = next((url for url in urls if storage.exists(url)), None)
            if found is None:
                raise InputError(
                    f"{storage.redact_url(self.folder)}: no published {product.name} raster found; run `mibf map` first."
                )
            self._urls[product.name] = found
        return self._urls[product.name]
