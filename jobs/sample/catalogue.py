"""A STAC catalogue of the sample, for a demonstration from a search to a map without a network.

It stands in for an archive: the sample is an image of one day, and the catalogue has it three times, on the days of three
passes, each under other made-up clouds. No pixel is cloudy on all days, so the median of the clear ones is the sample.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pystac
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform_geom
from scipy.ndimage import gaussian_filter

from jobs.sample import sample_folder

#: Days of passes; the image is of the second one.
DAYS = ("2017-02-06", "2017-02-16", "2017-02-26")
COLLECTION = "sentinel-2-l1c"
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
#: Classes of the scene classification: vegetation, and clouds of high probability. Reflectance of clouds, as stored.
CLEAR, CLOUD, BRIGHT = 4, 9, 9000
#: Share of a day's pixels under clouds, and their size as standard deviation in pixels of 20 m.
COVER, SIZE = 0.2, 20


def write_catalogue(folder: Path) -> None:
    """Write the catalogue (`catalog.json`), its files and the area (`area.gpkg`) into a folder, if it has none."""
    if (folder / "catalog.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with rasterio.open(sample_folder() / "B05.jp2") as dataset:
        shape, outline, crs = dataset.shape, shapely.box(*dataset.bounds), dataset.crs
    geopandas.GeoDataFrame(geometry=[outline], crs=crs).to_file(folder / "area.gpkg")
    footprint = transform_geom(crs, "EPSG:4326", shapely.geometry.mapping(outline))
    bounds = list(shapely.geometry.shape(footprint).bounds)
    extent = pystac.Extent(pystac.SpatialExtent([bounds]), pystac.TemporalExtent([[_noon(DAYS[0]), _noon(DAYS[-1])]]))
    collection = pystac.Collection(COLLECTION, "One Sentinel-2 image under made-up clouds of three days", extent)
    for day, clouds in zip(DAYS, _clouds(shape), strict=True):
        item = pystac.Item(f"{COLLECTION}_{day}", footprint, bounds, _noon(day), {"proj:code": str(crs)})
        for name in BANDS:
            item.add_asset(name, _asset(_write_band(folder / day, name, clouds)))
        item.add_asset("scl", _asset(_write(folder / day / "scl.tif", np.where(clouds, CLOUD, CLEAR).astype(np.uint8))))
        collection.add_item(item)
    catalogue = pystac.Catalog("sample", "The sample of mibf as an archive")
    catalogue.add_child(collection)
    catalogue.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)


def search_config(folder: Path) -> str:
    """Write the catalogue into a folder, and return the path of the configuration that searches it."""
    write_catalogue(folder)
    os.environ["MIBF_SAMPLE"], os.environ["MIBF_CATALOGUE"] = str(sample_folder()), str(folder.resolve())
    return str(sample_folder() / "search.yaml")


def _noon(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(hour=10, tzinfo=UTC)


def _clouds(shape: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """Draw where it is cloudy on each day; nowhere on the first and the last day."""
    drawn = np.random.default_rng(0)
    first, second = (gaussian_filter(drawn.normal(size=shape), SIZE) for _ in range(2))
    return [
        first > np.quantile(first, 1 - COVER),
        second > np.quantile(second, 1 - COVER),
        first < np.quantile(first, COVER),
    ]


def _write_band(folder: Path, name: str, clouds: NDArray[np.bool_]) -> Path:
    with rasterio.open(sample_folder() / f"{name}.jp2") as dataset:
        values = dataset.read(1)
    finer = values.shape[0] // clouds.shape[0]
    return _write(folder / f"{name}.tif", np.where(clouds.repeat(finer, 0).repeat(finer, 1), BRIGHT, values))


def _write(path: Path, values: NDArray[np.generic]) -> Path:
    """Write values on the sample's extent as GeoTIFF, 0 where there are no data."""
    with rasterio.open(sample_folder() / "B05.jp2") as dataset:
        crs, transform = dataset.crs, dataset.transform
    rows, columns = values.shape
    scale = Affine.scale(dataset.width / columns, dataset.height / rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": 1, "height": rows, "width": columns, "dtype": values.dtype.name, "nodata": 0}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform * scale, tiled=True, compress="deflate") as target:
        target.write(values, 1)
    return path


def _asset(path: Path) -> pystac.Asset:
    return pystac.Asset(str(path.resolve()), media_type=pystac.MediaType.GEOTIFF, roles=["data"])
