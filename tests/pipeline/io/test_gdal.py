"""Remote files are read as they are now, although GDAL caches their headers and blocks for the life of a process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from pipeline.grid import Window
from pipeline.io import gdal
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import open_raster
from pipeline.scenes.labels import Labels, open_labels
from pipeline.scenes.source import Source, open_source
from pipeline.scenes.split import open_split_raster
from tests.support.http_server import served
from tests.support.s3_server import ObjectStore
from tests.support.scenes import CRS, TRANSFORM, write_polygons

SIDE = 64
GRID = GeoBox((SIDE, SIDE), TRANSFORM, CRS)
WINDOW = Window(0, 0, SIDE, SIDE)
CLASSES = tuple(ClassName(i, str(i), "#000000") for i in (1, 2, 3))


def write(path: Path, value: int, *, seconds: int = 0) -> None:
    """Write a raster of one value, deflated, with a modification time `seconds` after 2020."""
    values = np.full((1, SIDE, SIDE), value, np.uint8)
    values[0, 0] = np.arange(SIDE) % 3 + 1  # so that two versions have different compressed blocks
    profile = {"driver": "GTiff", "count": 1, "height": SIDE, "width": SIDE, "dtype": "uint8", "compress": "deflate"}
    with rasterio.open(path, "w", **profile, crs=CRS, transform=TRANSFORM) as dataset:
        dataset.write(values)
    os.utime(path, (1577836800 + seconds,) * 2)


def as_source(url: str) -> int:
    values, _ = open_source(Source("a", ((RasterFile(url),),)), GRID).read(WINDOW)
    return int(values[0, -1, -1])


def as_labels(url: str) -> int:
    return int(open_labels(Labels(url), GRID, CLASSES).read(WINDOW)[-1, -1])


def as_split(url: str) -> int:
    return int(open_split_raster(url, GRID).codes(WINDOW, np.zeros((SIDE, SIDE), np.uint8))[-1, -1])


def without_stamp(url: str) -> int:
    with open_raster(RasterFile(url)) as raster:
        return int(raster.read(WINDOW)[0][0, -1, -1])


READERS = [as_source, as_labels, as_split, without_stamp]


@pytest.mark.parametrize("read", READERS)
def test_replaced_file_on_the_web_is_read_again(read: Callable[[str], int], tmp_path: Path) -> None:
    with served(tmp_path) as address:
        for seconds, value in enumerate((2, 1, 3)):
            write(tmp_path / "a.tif", value, seconds=seconds)
            assert read(f"{address}/a.tif") == value


def test_replaced_vector_file_on_the_web_is_read_again(tmp_path: Path) -> None:
    whole = shapely.box(*GRID.extent.boundingbox)
    with served(tmp_path) as address:
        for kind in ("2", "1", "3"):
            path = tmp_path / "a.gpkg"
            path.unlink(missing_ok=True)
            write_polygons(path, [(whole, kind)])
            found = open_labels(Labels(f"{address}/a.gpkg", attribute="kind"), GRID, CLASSES).read(WINDOW)
            assert (found == int(kind)).all()


def test_mask_file_that_appears_on_the_web_is_applied(tmp_path: Path) -> None:
    """GDAL also caches that a sidecar file does not exist."""
    write(tmp_path / "a.tif", 2)
    with served(tmp_path) as address:
        source = Source("a", ((RasterFile(f"{address}/a.tif"),),))
        assert open_source(source, GRID).read(WINDOW)[1].all()
        profile = {"driver": "GTiff", "count": 1, "height": SIDE, "width": SIDE, "dtype": "uint8"}
        with rasterio.open(tmp_path / "a.tif.msk", "w", **profile) as dataset:
            dataset.update_tags(INTERNAL_MASK_FLAGS_1="2")
            dataset.write(np.zeros((1, SIDE, SIDE), np.uint8))
        assert not open_source(source, GRID).read(WINDOW)[1].any()


def test_virtual_raster_of_a_replaced_file_on_the_web_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    with served(tmp_path / "served") as address:
        for seconds, value in enumerate((2, 1)):
            write(tmp_path / "served/a.tif", value, seconds=seconds)
            (tmp_path / "a.vrt").write_text(
                f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><VRTRasterBand dataType="Byte" band="1">'
                "<SimpleSource>"
                f'<SourceFilename relativeToVRT="0">/vsicurl/{address}/a.tif</SourceFilename><SourceBand>1</SourceBand>'
                "</SimpleSource></VRTRasterBand></VRTDataset>"
            )
            assert without_stamp(str(tmp_path / "a.vrt")) == value


def test_unchanged_remote_file_keeps_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(gdal, "drop_cached", lambda path, package: dropped.append(path))
    for version in ("a", "a", "b", "b", None):
        gdal.forget_other_versions("/vsis3/bucket/unchanged.tif", version)
        gdal.forget_other_versions("/data/local.tif", version)
    assert dropped == ["/vsis3/bucket/unchanged.tif"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("read", READERS)
def test_replaced_object_in_a_bucket_is_read_again(
    read: Callable[[str], int], used_bucket: ObjectStore, tmp_path: Path
) -> None:
    for value in (2, 1, 3):
        write(tmp_path / "a.tif", value)
        used_bucket.files.put_file(str(tmp_path / "a.tif"), f"{used_bucket.bucket}/replaced/a.tif")
        assert read(used_bucket.url("replaced/a.tif")) == value
