"""Raster attribute tables: the names, colours and pixel counts of class ids, as GDAL's XML files hold them.

Neither GeoTIFF nor GDAL's metadata in it can hold a table that all versions of GDAL read, so it is in the file's `.aux.xml`,
which GDAL and QGIS also find next to a file on a web server or in an object store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

import numpy as np
import rasterio

from mibf.bundle.classes import ClassName
from pipeline.geotiff.tile_codec import TILE

#: GDAL's numbers of the types of columns; counts are real numbers, because its integers have 32 bits.
_INTEGER, _REAL, _STRING = 0, 1, 2
#: Columns: name, type and GDAL's number of what it is used for.
_COLUMNS = (
    ("Value", _INTEGER, 5),
    ("Count", _REAL, 1),
    ("Class", _STRING, 2),
    ("Red", _INTEGER, 6),
    ("Green", _INTEGER, 7),
    ("Blue", _INTEGER, 8),
    ("Alpha", _INTEGER, 9),
)
#: Columns of pixels that are counted at once.
_SPAN = 8 * TILE


def count_pixels(path: Path, classes: Sequence[ClassName]) -> dict[int, int]:
    """Count the pixels of each class of a raster of class ids. Memory does not grow with the raster."""
    counts = {c.id: 0 for c in classes}
    with rasterio.open(path) as dataset:
        rows, columns = dataset.shape
        for y in range(0, rows, TILE):
            for x in range(0, columns, _SPAN):
                height, width = min(TILE, rows - y), min(_SPAN, columns - x)
                codes = dataset.read(1, window=rasterio.windows.Window(x, y, width, height))
                for code in counts:  # several times faster than a histogram, unless there are dozens of classes
                    counts[code] += int(np.count_nonzero(codes == code))
    return counts


def total_pixels(counts: Iterable[Mapping[int, int] | None]) -> dict[int, int] | None:
    """Add up the counts of several rasters; None if those of one are not known."""
    total: dict[int, int] = {}
    for found in counts:
        if found is None:
            return None
        for code, pixels in found.items():
            total[code] = total.get(code, 0) + pixels
    return total


def add_attribute_table(band: Element, classes: Sequence[ClassName], pixels: Mapping[int, int] | None) -> None:
    """Add the table of a band's class ids to its element; without counts if they are not known."""
    table = SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    columns = [column for column in _COLUMNS if column[0] != "Count" or pixels is not None]
    for number, (name, kind, usage) in enumerate(columns):
        column = SubElement(table, "FieldDefn", index=str(number))
        for key, value in (("Name", name), ("Type", str(kind)), ("Usage", str(usage))):
            SubElement(column, key).text = value
    for number, c in enumerate(classes):
        row = SubElement(table, "Row", index=str(number))
        count = [] if pixels is None else [pixels.get(c.id, 0)]
        for cell in (c.id, *count, c.name, *c.rgb, 255):
            SubElement(row, "F").text = str(cell)
