"""Remarks on the files of a source: one for all files that it applies to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from pipeline.rasters.header import Header, RasterFile
from pipeline.rasters.raster import AlignedFile
from pipeline.rasters.resample import Alignment
from pipeline.scenes.source import AlignedSource, Source, open_source
from pipeline.store.estimate import remarks
from tests.support.scenes import CRS, TRANSFORM, write_raster

GRID = GeoBox((60, 60), TRANSFORM, CRS)


@pytest.mark.parametrize(
    ("count", "named"), [(1, "0.tif has"), (2, "0.tif and 1 other file have"), (18, "0.tif and 17 other")]
)
def test_scale_of_a_mosaic_is_remarked_once(tmp_path: Path, count: int, named: str) -> None:
    tiles = []
    for number in range(count):
        place = TRANSFORM * Affine.translation(0, number)
        path = write_raster(tmp_path / f"{number}.tif", np.ones((1, 2, 60), np.uint8), transform=place)
        with rasterio.open(path, "r+") as dataset:
            dataset.scales = (0.5,)
        tiles.append(RasterFile(str(path)))
    (remark,) = remarks(open_source(Source("optical", (tuple(tiles),)), GRID), 128)
    assert named in remark
    assert "a scale or offset; set `unscale: true` to apply it" in remark


def test_finer_files_and_large_blocks_are_remarked_once_with_the_largest_figure() -> None:
    def part(name: str, finer: int, block: tuple[int, int]) -> AlignedFile:
        fine = GeoBox((60 * finer, 600_000 * finer), TRANSFORM * Affine.scale(1 / finer), CRS)
        head = Header(fine, ("float32",) * 9, (None,) * 9, block, (1.0,) * 9, (0.0,) * 9)
        return AlignedFile(RasterFile(name), head, Alignment("resampled", resampling="average"))

    layers = ((part("a.tif", 1, (60, 60)), part("b.tif", 2, (60, 900_000)), part("c.tif", 4, (60, 600_000))),)
    source = AlignedSource(Source("optical", ()), GRID, layers, None, np.dtype(np.float32))
    finer, blocks = remarks(source, 128)
    assert finer == "b.tif and 1 other file have 4 times the grid's resolution; `scale: 2` or `scale: 4` keeps detail"
    assert blocks.startswith("b.tif and 1 other file are stored in blocks of 60 x 600000 pixels, so ")
