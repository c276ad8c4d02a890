"""Cloud-optimised GeoTIFFs: one file per raster, or one per block of the grid with a VRT over them. Local files only."""

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

from mibf.bundle.classes import ClassName
from pipeline.grid import Window, windows
from pipeline.maps.products import CLASS_PRODUCTS, Product

#: Side of a file's internal tiles, in pixels.
TILE = 512
#: GDAL's names of the pixel types.
_GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "uint32": "UInt32", "uint64": "UInt64", "float32": "Float32"}
#: Reads the codes (band, y, x) of a product in a window of the grid.
TileReader = Callable[[Window], NDArray[Any]]


class CogError(RuntimeError):
    """A written file is not a valid cloud-optimised GeoTIFF, or its pixels differ from those written."""


def block_side(block: int, tile: int) -> int:
    """Round `block` up to a whole number of both map tiles and internal tiles of the files."""
    step = lcm(TILE, tile)
    return -(-block // step) * step


def pieces(name: str, shape_yx: tuple[int, int], *, block: int) -> list[tuple[str, Window]]:
    """List the files of a raster with their windows: one, or one per block if a side of the grid exceeds `block`.

    Raises:
        ValueError: blocks are not aligned to the files' internal tiles.
    """
    if block < TILE or block % TILE:
        raise ValueError(f"block size must be a multiple of {TILE} pixels, got {block}")
    rows, columns = shape_yx
    if max(shape_yx) <= block:
        return [(f"{name}.tif", Window(0, 0, rows, columns))]
    return [(f"{name}_y{window.y}_x{window.x}.tif", window) for window in windows(shape_yx, block)]


def build(
    read: TileReader,
    product: Product,
    window: Window,
    path: Path,
    *,
    grid: GeoBox,
    names: Sequence[str],
    classes: Sequence[ClassName],
    tags: Mapping[str, str],
) -> list[Path]:
    """Write a window of a product as a cloud-optimised GeoTIFF, with its sidecar file, and verify it.

    Memory is bounded by GDAL's cache: pixels are first written tile by tile into a plain GeoTIFF, which temporarily takes
    disk space next to the file. The result is then read back tile by tile, because GDAL does not raise an error for every
    failed write.

    Args:
        read: reads the product's codes in a window of the grid.
        product: the product to write.
        window: the part of the grid that the file covers.
        path: path of the file.
        grid: grid of the whole map.
        names: names of the bands.
        classes: provide the colours and names for products of class ids.
        tags: provenance metadata of the file.

    Returns:
        The file and, if it cannot hold everything, its sidecar file: the class names of products of class ids, and a CRS
        that GeoTIFF cannot hold.

    Raises:
        CogError: the file is not a valid cloud-optimised GeoTIFF, or its pixels or CRS differ from those written.
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
    for temporary in (plain, Path(f"{plain}.aux.xml")):
        temporary.unlink(missing_ok=True)
    valid, errors, _ = cog_validate(path, strict=True, quiet=True)
    if not valid:
        raise CogError(f"{path}: not a valid cloud-optimised GeoTIFF: {'; '.join(errors)}")
    if _checksum(path) != written:
        raise CogError(f"{path}: pixels read back differ from those written")
    return [path, *_write_sidecar(path, grid, classes if product.name in CLASS_PRODUCTS else ())]


def _write_sidecar(path: Path, grid: GeoBox, classes: Sequence[ClassName]) -> list[Path]:
    """Write what a GeoTIFF cannot hold to a sidecar file, if there is anything; check that the CRS can be read back."""
    sidecar = Path(f"{path}.aux.xml")
    sidecar.unlink(missing_ok=True)  # of GDAL
    root = Element("PAMDataset")
    if not _holds_crs(path, grid):
        SubElement(root, "SRS").text = grid.crs.to_wkt()
    if classes:
        _categories(SubElement(root, "PAMRasterBand", band="1"), classes)
    if len(root):
        sidecar.write_text(_text(root), "utf-8")
    check_crs(path, grid)
    return [sidecar] if len(root) else []


def check_crs(path: Path, grid: GeoBox) -> None:
    """Check that GDAL reads the grid's CRS from a file.

    Raises:
        CogError: it reads another one, or none.
    """
    if not _holds_crs(path, grid):
        raise CogError(f"{path}: the CRS read back differs from that of the grid, {grid.crs}")


def _holds_crs(path: Path, grid: GeoBox) -> bool:
    with rasterio.open(path) as dataset:
        return bool(dataset.crs == (None if grid.crs is None else rasterio.CRS.from_wkt(grid.crs.to_wkt())))


def _write_plain(
    path: Path,
    read: TileReader,
    product: Product,
    window: Window,
    *,
    grid: GeoBox,
    names: Sequence[str],
    classes: Sequence[ClassName],
    tags: Mapping[str, str],
) -> int:
    """Write a plain GeoTIFF and return the checksum of its pixels, computed as by `_checksum`."""
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
        "interleave": "band",  # otherwise GDAL decodes all bands for each one where a tile of them exceeds its cache
        "blockxsize": TILE,
        "blockysize": TILE,
        "compress": "deflate",
        "zlevel": 1,  # temporary file, read once
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
    """CRC-32 of a file's pixels, tile by tile."""
    checksum = 0
    with rasterio.open(path) as dataset:
        for part in windows(dataset.shape, TILE):
            checksum = crc32(np.ascontiguousarray(dataset.read(window=rasterio_window(part))).data, checksum)
    return checksum


def rasterio_window(window: Window) -> rasterio.windows.Window:
    """Convert a window to rasterio's."""
    return rasterio.windows.Window(window.x, window.y, window.width, window.height)


def color_table(classes: Sequence[ClassName]) -> dict[int, tuple[int, int, int, int]]:
    """The colour of each class id as (red, green, blue, alpha), 0 to 255; all other ids are transparent."""
    colors = {c.id: (*c.rgb, 255) for c in classes}
    return dict.fromkeys(range(256), (0, 0, 0, 0)) | colors


def _categories(band: Element, classes: Sequence[ClassName]) -> None:
    """Add the class names, which GeoTIFF cannot store."""
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
    """Build the VRT that mosaics the files of a product; it belongs in the same folder and refers to them by relative path.

    GDAL reads it from disks, object stores and HTTP alike, and uses the files' overviews.
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
    # With these properties GDAL does not need to open the files to know their layout.
    size = {"RasterXSize": str(window.width), "RasterYSize": str(window.height)}
    SubElement(source, "SourceProperties", size, DataType=kind, BlockXSize=str(TILE), BlockYSize=str(TILE))
    extent = {"xSize": str(window.width), "ySize": str(window.height)}
    SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0"} | extent)
    SubElement(source, "DstRect", {"xOff": str(window.x), "yOff": str(window.y)} | extent)
