"""Class names and colours stored in a raster file: category names, attribute table, colour table."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.etree import ElementTree

import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile

from pipeline.io import gdal
from pipeline.rasters.untrusted import open_dataset

#: Usages of columns in GDAL's raster attribute tables (GDALRATFieldUsage).
_NAME, _VALUE, _RED, _GREEN, _BLUE = "2", "5", "6", "7", "8"
#: Titles of the name and value columns, for files that do not declare their usage.
_NAME_TITLES = ("class_name", "classname", "class name", "label", "name", "class", "category", "landcover", "land cover")
_VALUE_TITLES = ("value", "id", "code", "class_id")
#: Names of values that mean "no label".
UNLABELLED_NAMES = {
    "", "background", "no data", "no label", "nodata", "none", "null", "unclassified", "undefined", "unknown", "unlabeled",
    "unlabelled",
}  # fmt: skip  # a list of names: one per line would fill a page


@dataclass(frozen=True)
class Legend:
    """Names and colours of the values of a file."""

    names: dict[int, str] = field(default_factory=dict)
    colors: dict[int, str] = field(default_factory=dict)  #: as #rrggbb; without transparent entries

    def is_unlabelled(self, value: int) -> bool:
        """Whether the name of a value says that it means "no label"."""
        return value in self.names and means_unlabelled(self.names[value])


def means_unlabelled(name: str) -> bool:
    """Whether a class name means "no label".

    >>> means_unlabelled(" No Data "), means_unlabelled("water")
    (True, False)
    """
    return name.strip().lower() in UNLABELLED_NAMES


def read_legend(url: str) -> Legend:
    """Read the names and colours of a raster file's values; empty if it has none or GDAL cannot read it."""
    gdal.configure_gdal()
    try:
        with open_dataset(url, gdal.gdal_path(url)) as dataset:
            if not dataset.count:
                return Legend()
            band = _band_xml(dataset)
            colors = _color_table(dataset)
    except RasterioError:
        return Legend()
    table = band.find("GDALRasterAttributeTable")
    from_table = Legend() if table is None else _attribute_table(table)
    categories = (clean_text(item.text or "") for item in band.findall("CategoryNames/Category"))
    names = {value: name for value, name in enumerate(categories) if name}
    return Legend(names | from_table.names, colors | from_table.colors)


def clean_text(text: str) -> str:
    """Return a text on one line, without non-printable characters, at most 80 characters long."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:80]


def _band_xml(dataset: DatasetReader) -> ElementTree.Element:
    """Return GDAL's metadata of the first band, as the XML of a virtual copy: rasterio has no functions for legends."""
    with MemoryFile(ext=".vrt") as memory:
        rasterio.shutil.copy(dataset, memory.name, driver="VRT")
        band = ElementTree.fromstring(memory.read()).find("VRTRasterBand")
    return ElementTree.Element("VRTRasterBand") if band is None else band


def _color_table(dataset: DatasetReader) -> dict[int, str]:
    try:
        entries = dataset.colormap(1)
    except ValueError:  # no colour table
        return {}
    return {int(value): _hex(*color[:3]) for value, color in entries.items() if color[3]}


def _hex(red: int, green: int, blue: int) -> str:
    return f"#{red:02x}{green:02x}{blue:02x}"


def _attribute_table(table: ElementTree.Element) -> Legend:
    """Read a raster attribute table; without a value column, rows are numbered from 0."""
    columns = [(clean_text(c.findtext("Name", "")).lower(), c.findtext("Usage", "0")) for c in table.findall("FieldDefn")]
    columns_by_role = {"name": _column(columns, _NAME, _NAME_TITLES), "value": _column(columns, _VALUE, _VALUE_TITLES)}
    bands = [_column(columns, usage, ()) for usage in (_RED, _GREEN, _BLUE)]
    names, colors = {}, {}
    for number, row in enumerate(table.findall("Row")):
        cells = [cell.text or "" for cell in row.findall("F")]
        value = number if columns_by_role["value"] is None else _whole(_cell(cells, columns_by_role["value"]))
        if value is None:
            continue
        name = "" if columns_by_role["name"] is None else clean_text(_cell(cells, columns_by_role["name"]))
        if name:
            names[value] = name
        color = [None if at is None else _whole(_cell(cells, at)) for at in bands]
        red, green, blue = color
        if red is not None and green is not None and blue is not None and max(red, green, blue) < 256:
            colors[value] = _hex(red, green, blue)
    return Legend(names, colors)


def _column(columns: list[tuple[str, str]], usage: str, titles: tuple[str, ...]) -> int | None:
    """Find a column by its usage, else by its title."""
    for position, (_, declared) in enumerate(columns):
        if declared == usage:
            return position
    found = {title: position for position, (title, _) in enumerate(columns)}
    return next((found[title] for title in titles if title in found), None)


def _cell(cells: list[str], position: int) -> str:
    return cells[position] if position < len(cells) else ""


def _whole(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() and value >= 0 else None
