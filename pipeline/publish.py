"""Putting a map's files in the place of an earlier map's, so that a reader never sees half of one; reading them back.

A map is there when its item is, `item.json`, which the caller writes once all files are in place. So: every file is
built and seen to be valid in a folder aside; the earlier map's item goes; the files are moved into place; what is left
of the earlier map goes. Whatever fails before the item goes leaves the earlier map as it was.
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

from mibf.bundle import ClassName
from mibf.errors import InputError
from pipeline import cog, storage
from pipeline.grid import Window
from pipeline.products import MAP_PRODUCTS, Product
from pipeline.strangers import open_published

#: The folder aside, and the item, in the map's own folder.
STAGING, ITEM = ".staging", "item.json"
#: The names of a map's files, of any products and blocks.
_FILES = re.compile(rf"({'|'.join(MAP_PRODUCTS)})(_y\d+_x\d+)?\.(tif|tif\.aux\.xml|vrt)")
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: What comes of it when GDAL cannot write.
_OF_GDAL = (rasterio.errors.RasterioError, CPLE_BaseError, SystemError, cog.CogError)


class PublishError(RuntimeError):
    """A map could not be published for a reason that the message tells; the earlier one, if any, is still there."""


@dataclass(frozen=True)
class Published:
    """A file of a published map: one of a product's GeoTIFFs, or the VRT that makes one raster of them."""

    product: Product
    name: str  #: of the file in the map's folder
    url: str
    window: Window  #: the part of the grid that it holds
    bytes: int
    sha256: str


def publish(
    read_of: Callable[[Product], cog.Read],
    products: Sequence[Product],
    folder: str,
    *,
    grid: GeoBox,
    classes: Sequence[ClassName],
    names_of: Callable[[Product], Sequence[str]],
    tags: dict[str, str],
    block: int,
    each: Callable[[str], object] = lambda _: None,
) -> list[Published]:
    """Publish a map's products in a folder; the map is there when the caller has written its item there.

    On a local disk files are built in the folder itself: a full one is met while the earlier map is whole. For an object
    store each is built in a temporary folder and uploaded, so that the local disk holds one file at a time.

    Args:
        read_of: gives the reader of a product's codes (band, y, x) in a window of the grid.
        products: which; files of others, of an earlier map, go.
        folder: the map's, any URL.
        grid: the map's.
        classes: whose colours and names layers of class ids are given.
        names_of: gives the names of a product's bands.
        tags: what each file says of where it comes from.
        block: the longest side in pixels of a file, a multiple of 512; a larger grid comes in blocks of it.
        each: is told the name of each file that is built.

    Returns:
        The files, product by product, the VRT behind its pieces. Those with the names of classes, `NAME.tif.aux.xml`,
        belong to their rasters and are not listed.

    Raises:
        PublishError: a disk is full.
        CogError: a file is not valid, or does not hold what was written.
    """
    storage.set_gdal_up()  # its cache would grow to a share of the machine's memory
    staging = storage.join(folder, STAGING)
    with storage.folder_in_use(folder), _aside(staging) as place:
        published: list[Published] = []
        names: list[str] = []
        for product in products:
            bands = names_of(product)
            for made, window in _built(
                product, place, read_of(product), grid=grid, names=bands, classes=classes, tags=tags, block=block
            ):
                size, sha256 = _size_and_sha256(made[0])
                url = storage.join(folder, made[0].name)
                published.append(Published(product, made[0].name, url, window, size, sha256))
                each(made[0].name)
                for path in made:
                    names.append(path.name)
                    if not storage.is_local(staging):
                        storage.publish(str(path), storage.join(staging, path.name))
        storage.remove(storage.join(folder, ITEM))
        for name in names:
            storage.move_file(storage.join(staging, name), storage.join(folder, name))
        for name in sorted(set(storage.names(folder)) - set(names)):
            if _FILES.fullmatch(name):
                storage.remove(storage.join(folder, name))
        return published


def _built(
    product: Product,
    place: Path,
    read: cog.Read,
    *,
    grid: GeoBox,
    names: Sequence[str],
    classes: Sequence[ClassName],
    tags: dict[str, str],
    block: int,
) -> Iterator[tuple[list[Path], Window]]:
    """Build a product's files in a folder, one after the other: each with those that belong to it, and what it holds."""
    rows, columns = grid.shape
    parts = cog.pieces(product.name, (rows, columns), block=block)
    for name, window in parts:
        pixels = window.height * window.width * len(names) * np.dtype(product.dtype).itemsize
        with _room(place, name, pixels=pixels):
            made = cog.build(read, product, window, place / name, grid=grid, names=names, classes=classes, tags=tags)
        yield made, window
    if len(parts) > 1:
        path = place / f"{product.name}.vrt"
        with _room(place, path.name):
            path.write_text(cog.vrt(parts, product, grid=grid, names=names, classes=classes, tags=tags), "utf-8")
        yield [path], Window(0, 0, rows, columns)


@contextmanager
def _aside(staging: str) -> Iterator[Path]:
    """A local folder to build in what is staged at a URL; neither is there afterwards, as far as can be."""
    storage.remove(staging)
    try:
        with ExitStack() as stack:
            if storage.is_local(staging):
                place = Path(storage.local_path(staging))
                with _room(place.parent, place.name):
                    place.mkdir(parents=True)
            else:
                place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mibf-")))
            yield place
    finally:
        with suppress(Exception):  # what went wrong before counts, and the next one to publish tries again
            storage.remove(staging)


@contextmanager
def _room(place: Path, name: str, *, pixels: int = 0) -> Iterator[None]:
    """Write a file in a folder, of so many bytes of pixels uncompressed.

    GDAL raises errors of many kinds where a disk is full, few of which say so. They are taken for that where less room is
    left than the file may want: for its pixels and overviews and what GDAL keeps beside them for a while, twice the
    pixels.

    Raises:
        PublishError: there is no room for it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL and not (isinstance(error, _OF_GDAL) and _little_left(place, 2 * pixels)):
            raise
        cause: Exception = error
    except _OF_GDAL as error:
        if not _little_left(place, 2 * pixels):
            raise
        cause = error
    else:
        return
    left = shutil.disk_usage(place).free / 1e6
    raise PublishError(
        f"{place}: the disk is full, {left:,.1f} MB are left for {name}, which takes up to {2 * pixels / 1e6:,.1f}; nothing "
        "was published, and an earlier map is as it was. Make room there, publish fewer products (map.products) or smaller "
        "ones (map.dtype: uint8), or take another disk (the workspace's, or by TMPDIR where the workspace is in an object "
        "store); then run `mibf map` again."
    ) from cause


def _little_left(place: Path, wanted: int) -> bool:
    return shutil.disk_usage(place).free < wanted


def _size_and_sha256(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


class PublishedMap:
    """A map that was published in a folder, any URL, to read; not for several threads at a time."""

    def __init__(self, folder: str) -> None:
        storage.set_gdal_up()
        self.folder = folder
        self._places: dict[str, str] = {}

    def read(self, product: Product, window: Window, *, shape_yx: tuple[int, int] | None = None) -> NDArray[Any]:
        """The codes of a product in a window of the grid, (band, height, width); thinned out to a shape, where it is given.

        Raises:
            InputError: the map has no such product, or has it in another type of pixels.
        """
        place = self._place(product)
        # What GDAL keeps of files that it once read would be that of an earlier map of the same name.
        with rasterio.Env(CPL_VSIL_CURL_NON_CACHED=storage.gdal_path(self.folder)), open_published(place) as dataset:
            if set(dataset.dtypes) != {product.dtype}:
                raise InputError(
                    f"{storage.shown(self.folder)}: {product.name} is stored as {dataset.dtypes[0]}, "
                    f"not as {product.dtype}; run `mibf map` again."
                )
            shape = None if shape_yx is None else (dataset.count, *shape_yx)
            return np.asarray(dataset.read(window=cog.rasterio_window(window), out_shape=shape))

    def _place(self, product: Product) -> str:
        """The URL of a product's raster: its one file, or the VRT over its pieces."""
        if product.name not in self._places:
            urls = [storage.join(self.folder, f"{product.name}.{suffix}") for suffix in ("tif", "vrt")]
            found = next((url for url in urls if storage.exists(url)), None)
            if found is None:
                raise InputError(
                    f"{storage.shown(self.folder)}: no {product.name} of a published map; run `mibf map` first."
                )
            self._places[product.name] = found
        return self._places[product.name]
