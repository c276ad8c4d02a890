"""Cloud-optimised GeoTIFFs: one file per raster, or one per block of the grid with a VRT over them. Local files only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import lcm
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import rasterio
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from pipeline.geotiff.attribute_table import add_attribute_table
from pipeline.geotiff.tile_codec import TILE, CogError
from pipeline.grid import Window, windows
from pipeline.maps.products import CLASS_PRODUCTS, Product

#: GDAL's names of the pixel types.
_GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "uint32": "UInt32", "uint64": "UInt64", "float32": "Float32"}


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


def write_sidecar(
    path: Path, grid: GeoBox, classes: Sequence[ClassName], *, pixels: Mapping[int, int] | None = None
) -> list[Path]:
    """Write what a GeoTIFF cannot hold to a sidecar file, if there is anything; check that the CRS can be read back.

    Of a raster of class ids, that is their names and attribute table; `pixels` is the number of pixels of each id.
    """
    sidecar = Path(f"{path}.aux.xml")
    sidecar.unlink(missing_ok=True)  # of GDAL
    root = Element("PAMDataset")
    if not _holds_crs(path, grid):
        SubElement(root, "SRS").text = grid.crs.to_wkt()
    if classes:
        band = SubElement(root, "PAMRasterBand", band="1")
        _categories(band, classes)
        add_attribute_table(band, classes, pixels)
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
    pixels: Mapping[int, int] | None = None,
) -> str:
    """Build the VRT that mosaics the files of a product; it belongs in the same folder and refers to them by relative path.

    GDAL reads it from disks, object stores and HTTP alike, and uses the files' overviews. `pixels` is the number of pixels
    of each class id, where it is known.
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
            add_attribute_table(band, classes, pixels)
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
