"""Opens rasters with QGIS and GDAL's own bindings, and prints what they read as JSON.

Run by the interpreter that has them, which is that of the Linux distribution: neither can be installed from PyPI.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from osgeo import gdal
from qgis.core import QgsApplication, QgsRasterLayer

gdal.UseExceptions()


def read_with_gdal(path: str) -> dict[str, Any]:
    """Names, colours and attribute table of the first band; and whether it has overviews."""
    dataset = gdal.Open(path)  # a band is only valid as long as its data set
    band = dataset.GetRasterBand(1)
    table, colors = band.GetDefaultRAT(), band.GetColorTable()
    rows = [] if table is None else range(table.GetRowCount())
    columns = [] if table is None else range(table.GetColumnCount())
    return {
        "names": band.GetCategoryNames(),
        "colors": [] if colors is None else [colors.GetColorEntry(i) for i in range(colors.GetCount())],
        "columns": [table.GetNameOfCol(column) for column in columns],
        "usages": [table.GetUsageOfCol(column) for column in columns],
        "rows": [[table.GetValueAsString(row, column) for column in columns] for row in rows],
        "scale": band.GetScale(),
        "nodata": band.GetNoDataValue(),
    }


def read_with_qgis(path: str) -> dict[str, Any]:
    """The renderer that QGIS chooses by itself, and what it shows in the legend."""
    layer = QgsRasterLayer(path, "map")
    renderer = layer.renderer()
    return {
        "valid": layer.isValid(),
        "renderer": renderer.type(),
        "legend": [[label, color.name()] for label, color in renderer.legendSymbologyItems()],
        "crs": layer.crs().authid(),
        "value": layer.dataProvider().sample(layer.extent().center(), 1)[0],
    }


if __name__ == "__main__":
    QgsApplication.setPrefixPath("/usr", True)
    application = QgsApplication([], False)
    application.initQgis()
    print(json.dumps({path: {"gdal": read_with_gdal(path), "qgis": read_with_qgis(path)} for path in sys.argv[1:]}))
    application.exitQgis()
