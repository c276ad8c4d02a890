"""Rasters as cloud-optimised GeoTIFFs: one file, or one a block of the grid with a VRT over them. Local files only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import lcm
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement
from zlib import crc32

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from mibf.bundle import ClassName
from pipeline.grid import Window, windows
from pipeline.products import CLASS_PRODUCTS, Product

#: Side of the squares that a file stores pixels in.
TILE = 512
#: A type of pixels in GDAL's words.
_GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "uint32": "UInt32", "uint64": "UInt64", "float32": "Float32"}

#: Reads the codes (band, y, x) of a product in a window of the grid.
Read = Callable[[Window], NDArray[Any]]


class CogError(RuntimeError):
    """A file that was written is not a valid cloud-optimised GeoTIFF, or does not hold what was written."""


def block_side(block: int, tile: int) -> int:
    """The least side from `block` on that is whole tiles of the map and of the files."""
    step = lcm(TILE, tile)
    return -(-block // step) * step


def pieces(name: str, shape_yx: tuple[int, int], *, block: int) -> list[tuple[str, Window]]:
    """The files of a raster and what each holds: one, or one a block where a side of the grid is longer than `block`.

    Raises:
        ValueError: blocks do not begin where the files' own squares do.
    """
    if block < TILE or block % TILE:
        raise ValueError(f"blocks of {block} pixels; a multiple of {TILE} is wanted")
    rows, columns = shape_yx
    if max(shape_yx) <= block:
        return [(f"{name}.tif", Window(0, 0, rows, columns))]
    return [(f"{name}_y{window.y}_x{window.x}.tif", window) for window in windows(shape_yx, block)]


def build(
    read: Read,
    product: Product,
    window: Window,
    path: Path,
    *,
    grid: GeoBox,
    names: Sequence[str],
    classes: Sequence[ClassName],
    tags: Mapping[str, str],
) -> list[Path]:
    """Write a window of a product as a cloud-optimised GeoTIFF, seen to be valid and whole, with what belongs beside it.

    Memory is bounded by GDAL's cache: pixels go square by square into a plain GeoTIFF first, which needs room beside the
    file for as long as it takes; and square by square the file is read again, as GDAL does not raise an error for every
    write that fails.

    Args:
        read: gives the product's codes in a window of the grid.
        product: what is written.
        window: the part of the grid that the file is to hold.
        path: of the file.
        grid: the whole map's.
        names: of the bands.
        classes: whose colours and names layers of class ids are given.
        tags: what the file says of where it comes from.

    Returns:
        The file and, of class ids, the one beside it with the classes' names.

    Raises:
        CogError: what was written is not a valid cloud-optimised GeoTIFF, or not whole.
    """
    plain = path.with_suffix(".plain.tif")
    written = _write_plain(plain, read, product, window, grid=grid, names=names, classes=classes, tags=tags)
    rasterio.shutil.copy(
        plain,
        path,
        driver="COG",
        compress="deflate",
        predictor=product.predictor,
        blocksize=TILE,
        overviews="auto",
        overview_resampling=product.overviews,
        bigtiff="if_safer",
        num_threads="all_cpus",
    )
    plain.unlink()
    valid, errors, _ = cog_validate(path, strict=True, quiet=True)
    if not valid:
        raise CogError(f"{path}: not a valid cloud-optimised GeoTIFF: {'; '.join(errors)}")
    if _checksum(path) != written:
        raise CogError(f"{path}: does not hold the pixels that were written")
    if product.name not in CLASS_PRODUCTS:
        return [path]
    beside = Path(f"{path}.aux.xml")
    beside.write_text(category_names(classes), "utf-8")
    return [path, beside]


def _write_plain(
    path: Path,
    read: Read,
    product: Product,
    window: Window,
    *,
    grid: GeoBox,
    names: Sequence[str],
    classes: Sequence[ClassName],
    tags: Mapping[str, str],
) -> int:
    """Write a plain GeoTIFF; the checksum of its pixels, as of `_checksum`."""
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": window.height,
        "width": window.width,
        "count": len(names),
        "dtype": product.dtype,
        "nodata": product.nodata,
        "transform": grid.affine * Affine.translation(window.x, window.y),
        "crs": None if grid.crs is None else grid.crs.to_wkt(),
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "compress": "deflate",
        "zlevel": 1,  # it is read once
        "bigtiff": "if_safer",
    }
    checksum = 0
    with rasterio.open(path, "w", **profile) as target:
        target.update_tags(**tags)
        target.scales, target.offsets = [product.scale] * len(names), [0.0] * len(names)
        target.units = [product.unit] * len(names)
        for band, name in enumerate(names, start=1):
            target.set_band_description(band, name)
        if product.name in CLASS_PRODUCTS:
            target.write_colormap(1, color_table(classes))
            target.update_tags(1, **{f"class_{c.id}": c.name for c in classes})
        for part in windows((window.height, window.width), TILE):
            codes = np.ascontiguousarray(read(Window(window.y + part.y, window.x + part.x, part.height, part.width)))
            target.write(codes, window=rasterio_window(part))
            checksum = crc32(codes.data, checksum)
    return checksum


def _checksum(path: Path) -> int:
    """The CRC-32 of a file's pixels, square by square."""
    checksum = 0
    with rasterio.open(path) as dataset:
        for part in windows(dataset.shape, TILE):
            checksum = crc32(np.ascontiguousarray(dataset.read(window=rasterio_window(part))).data, checksum)
    return checksum


def rasterio_window(window: Window) -> rasterio.windows.Window:
    """A window as rasterio takes it."""
    return rasterio.windows.Window(window.x, window.y, window.width, window.height)


def color_table(classes: Sequence[ClassName]) -> dict[int, tuple[int, int, int, int]]:
    """The colour of each class id as red, green, blue and alpha from 0 to 255; all others are transparent."""
    colors = {c.id: (*bytes.fromhex(c.color.removeprefix("#")), 255) for c in classes}
    return dict.fromkeys(range(256), (0, 0, 0, 0)) | colors


def category_names(classes: Sequence[ClassName]) -> str:
    """The class names as GDAL reads them from the file beside a raster: a GeoTIFF has no place for them."""
    root = Element("PAMDataset")
    _categories(SubElement(root, "PAMRasterBand", band="1"), classes)
    return _text(root)


def _categories(band: Element, classes: Sequence[ClassName]) -> None:
    names = {c.id: c.name for c in classes}
    listed = SubElement(band, "CategoryNames")
    for i in range(max(names) + 1):
        SubElement(listed, "Category").text = names.get(i, "")


def _text(root: Element) -> str:
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, "unicode", short_empty_elements=False) + "\n"


def vrt(
    parts: Sequence[tuple[str, Window]],
    product: Product,
    *,
    grid: GeoBox,
    names: Sequence[str],
    classes: Sequence[ClassName],
    tags: Mapping[str, str],
) -> str:
    """The pieces of a product as one raster: a VRT to lie in the same folder, which names them relative to itself.

    GDAL takes it from disks, object stores and the web alike, and the pieces' overviews with it.
    """
    rows, columns = grid.shape
    root = Element("VRTDataset", rasterXSize=str(columns), rasterYSize=str(rows))
    if grid.crs is not None:
        SubElement(root, "SRS").text = grid.crs.to_wkt()
    SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in grid.affine.to_gdal())
    _metadata(root, tags)
    kind = _GDAL_TYPES[product.dtype]
    for number, name in enumerate(names, start=1):
        band = SubElement(root, "VRTRasterBand", dataType=kind, band=str(number))
        SubElement(band, "Description").text = name
        SubElement(band, "NoDataValue").text = f"{product.nodata:g}"
        if product.unit:
            SubElement(band, "UnitType").text = product.unit
        SubElement(band, "Offset").text = "0"
        SubElement(band, "Scale").text = repr(product.scale)
        if product.name in CLASS_PRODUCTS:
            _metadata(band, {f"class_{c.id}": c.name for c in classes})
            SubElement(band, "ColorInterp").text = "Palette"
            _categories(band, classes)
            table = SubElement(band, "ColorTable")
            for color in color_table(classes).values():
                SubElement(table, "Entry", {f"c{i}": str(part) for i, part in enumerate(color, start=1)})
        for file, window in parts:
            _source(band, file, number, window, kind)
    return _text(root)


def _metadata(parent: Element, values: Mapping[str, str]) -> None:
    if values:
        listed = SubElement(parent, "Metadata")
        for key, value in values.items():
            SubElement(listed, "MDI", key=key).text = value


def _source(band: Element, file: str, number: int, window: Window, kind: str) -> None:
    source = SubElement(band, "SimpleSource")
    SubElement(source, "SourceFilename", relativeToVRT="1").text = file
    SubElement(source, "SourceBand").text = str(number)
    # With these GDAL need not open the pieces to know them.
    size = {"RasterXSize": str(window.width), "RasterYSize": str(window.height)}
    SubElement(source, "SourceProperties", size, DataType=kind, BlockXSize=str(TILE), BlockYSize=str(TILE))
    extent = {"xSize": str(window.width), "ySize": str(window.height)}
    SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0"} | extent)
    SubElement(source, "DstRect", {"xOff": str(window.x), "yOff": str(window.y)} | extent)
