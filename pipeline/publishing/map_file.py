"""Build one file of a map from its encoded parts, and check it. Files are independent, as parts are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from pipeline.geotiff import cog
from pipeline.geotiff.attribute_table import count_pixels
from pipeline.geotiff.encoded_tiles import EncodedPart
from pipeline.geotiff.raster_file import RasterFile, assemble
from pipeline.grid import Window
from pipeline.io import gdal, storage
from pipeline.io.retry import call_with_retry
from pipeline.maps.products import CLASS_PRODUCTS, Product
from pipeline.publishing.publish import check_disk_space


class DamagedFileError(RuntimeError):
    """The content of a published file is not what its item says."""


@dataclass(frozen=True)
class MapFiles:
    """What the files of a map have in common."""

    folder: str  #: URL of the map's folder
    staging: str  #: folder for what is built
    grid: GeoBox
    products: tuple[Product, ...]
    names: tuple[tuple[str, ...], ...]  #: of the bands of each product
    classes: tuple[ClassName, ...]
    sources: tuple[str, ...]  #: names of the model's sources
    #: Written into every file. They must not depend on tiles or workers, so that a file has the same bytes however it was
    #: made; the item records the rest.
    tags: Mapping[str, str]

    def raster(self, number: int, window: Window) -> RasterFile:
        """The file of a product for a window of the grid."""
        return RasterFile(self.products[number], window, self.grid, self.names[number], self.classes, self.tags)


@dataclass(frozen=True)
class FileContent:
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str
    #: Number of pixels of each class id, of a raster of classes; None where it is not known.
    pixels: Mapping[int, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class FileTask:
    """A file to build."""

    number: int  #: of its product
    name: str
    window: Window
    parts: tuple[EncodedPart, ...]
    published: FileContent | None  #: the file of that name that has the other tiles


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published map: a GeoTIFF of a product, or the VRT that mosaics its GeoTIFFs."""

    number: int  #: of its product
    name: str  #: file name in the map's folder
    window: Window  #: the part of the grid that the file covers
    content: FileContent
    sidecars: Mapping[str, FileContent] = field(default_factory=dict)  #: by name; they hold what a GeoTIFF cannot


def build_file(files: MapFiles, task: FileTask) -> PublishedFile:
    """Build a file in the staging folder.

    In an object store, it is built in a temporary folder and uploaded.

    Raises:
        CogError: the file is not a valid cloud-optimised GeoTIFF, or has another CRS.
        DamagedFileError: the published file of that name is not the one that its item describes.
        PublishError: the disk is full.
    """
    gdal.configure_gdal()
    raster = files.raster(task.number, task.window)
    with TemporaryDirectory(prefix="mibf-") as temporary:
        local = storage.is_local(files.staging)
        folder = Path(storage.local_path(files.staging) if local else temporary)
        path = folder / task.name
        stored = sum(int(part.products[task.number].sizes.sum()) for part in task.parts)
        needed = stored + (0 if task.published is None else task.published.bytes)
        with check_disk_space(folder, task.name, needed=needed):
            published = None
            if task.published is not None:
                published = _verified(storage.join(files.folder, task.name), task.published, Path(temporary))
            assemble(raster, task.number, task.parts, path, published=published)
            classes = files.classes if raster.product.name in CLASS_PRODUCTS else ()
            pixels = count_pixels(path, classes) if classes else None
            sidecars = cog.write_sidecar(path, files.grid, classes, pixels=pixels)
            content = replace(file_content(path), pixels=pixels)
            beside = {each.name: file_content(each) for each in sidecars}
        if not local:
            for each in (path, *sidecars):
                url = storage.join(files.staging, each.name)
                call_with_retry(url, lambda each=each, url=url: storage.publish(str(each), url))  # type: ignore[misc]  # bound now
    return PublishedFile(task.number, task.name, task.window, content, beside)


def file_content(path: Path) -> FileContent:
    """Size and SHA-256 of a local file."""
    with path.open("rb") as file:
        return FileContent(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _verified(url: str, expected: FileContent, temporary: Path) -> Path:
    """A local path of a published file: a copy in the temporary folder if it is in an object store.

    Raises:
        DamagedFileError: it is not what is expected.
    """
    path = Path(storage.local_path(url)) if storage.is_local(url) else temporary / f"published-{url.rpartition('/')[2]}"
    if not storage.is_local(url):
        filesystem, remote = storage.open_url(url)
        call_with_retry(url, lambda: filesystem.get_file(remote, str(path)))
    if file_content(path) != expected:
        raise DamagedFileError(f"{storage.redact_url(url)}: is not the file that its item describes")
    return path
