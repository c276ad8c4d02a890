"""Grids, classes and class rasters of maps to publish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from mibf.bundle.classes import ClassName
from pipeline.codes import UNLABELLED

CLASSES = (ClassName(1, "open water", "#466b9f"), ClassName(2, "forest | wood", "#1c5f2c"), ClassName(5, "!", "#d1182c"))

UTM = GeoBox((400, 300), Affine(10, 0, 500000, 0, -10, 5_000_000), "EPSG:32633")


def make_grid(affine: Affine, crs: str | None, shape_yx: tuple[int, int] = (40, 30)) -> GeoBox:
    """Return a grid of 40 x 30 pixels, or of another shape."""
    return GeoBox(shape_yx, affine, crs)


GEOGRAPHIC = make_grid(Affine(0.01, 0, 10, 0, -0.01, 50), "EPSG:4326")

LOCAL = make_grid(Affine(1, 0, 0, 0, -1, 40), None)

ANTIMERIDIAN = GeoBox((4000, 8000), Affine(10, 0, 780000, 0, -10, 8_000_000), "EPSG:32760")

#: A CRS without an authority code.
CUSTOM_CRS = make_grid(Affine(10, 0, 0, 0, -10, 0), "+proj=laea +lat_0=51.5 +lon_0=9.25 +ellps=GRS80 +units=us-ft")


def write_classes(path: Path, ids: np.ndarray, place: GeoBox = UTM) -> Path:
    """Write class ids as a tiled GeoTIFF with overviews."""
    rows, columns = ids.shape
    profile = {"driver": "GTiff", "height": rows, "width": columns, "count": 1, "dtype": "uint8", "nodata": UNLABELLED}
    crs = None if place.crs is None else place.crs.to_wkt()
    with rasterio.open(path, "w", **profile, tiled=True, transform=place.affine, crs=crs) as target:
        target.write(ids, 1)
        target.build_overviews([2, 4], Resampling.mode)
    return path
