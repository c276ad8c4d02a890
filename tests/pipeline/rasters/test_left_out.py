"""Files that hold several images or arrays: each can be selected, and what is left out is reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from odc.geo.geobox import GeoBox

from jobs.prepare.preflight import file_remarks
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import header, open_raster
from pipeline.rasters.variables import Variable, list_variables
from pipeline.scenes.labels import NoLabels, RasterLabels
from pipeline.scenes.source import Source, open_source
from pipeline.scenes.split import NoSplit, open_split_raster
from pipeline.stac.masks import Mask
from pipeline.store.build import PreparedScene
from tests.support.http_server import served
from tests.support.scenes import CRS, TRANSFORM, write_raster

VALUES = np.arange(1, 49, dtype=np.uint8).reshape(6, 8)
WINDOW = Window(0, 0, 6, 8)
GRID = GeoBox((6, 8), TRANSFORM, CRS)


def read(file: RasterFile, window: Window = WINDOW) -> np.ndarray:
    with open_raster(file) as raster:
        return raster.read(window)[0]


def as_tiff(path: Path) -> tuple[str, ...]:
    """Three images, of which one is an overview of the first."""
    with tifffile.TiffWriter(path) as file:
        file.write(VALUES, photometric="minisblack", metadata=None)
        file.write(VALUES[::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
        file.write(VALUES + 100, photometric="minisblack", metadata=None)
    return "1", "3"


def as_nitf(path: Path) -> tuple[str, ...]:
    for added, options in ((0, {"NUMI": 2}), (100, {"APPEND_SUBDATASET": "YES", "IDLVL": 2})):
        with rasterio.open(path, "w", driver="NITF", count=1, height=6, width=8, dtype="uint8", **options) as dataset:
            dataset.write(VALUES[None] + np.uint8(added))
    return "0", "1"


@pytest.mark.parametrize(("write", "suffix"), [(as_tiff, ".tif"), (as_nitf, ".ntf")])
def test_further_images_of_a_file_are_reported_and_can_be_selected(
    write: Callable[[Path], tuple[str, ...]], suffix: str, tmp_path: Path
) -> None:
    url = str(tmp_path / f"a{suffix}")
    first, second = write(Path(url))
    found = header(RasterFile(url)).left_out
    assert found == (
        f'{url} holds 2 images, of which only the first is read; select one with `variable`: "{first}", "{second}"'
    )
    assert (read(RasterFile(url))[0] == VALUES).all()
    for variable, added in ((first, 0), (second, 100)):
        assert header(RasterFile(url, variable)).left_out is None
        assert (read(RasterFile(url, variable))[0] == VALUES + added).all()
    with pytest.raises(InputError, match="select an image of the file by its number"):
        header(RasterFile(url, "red"))
    with pytest.raises(InputError, match=r"cannot be read as a raster|holds no raster"):
        header(RasterFile(url, "9"))


def test_overviews_and_masks_are_not_further_images(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((1, 600, 600), np.uint8))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4])
        dataset.write_mask(True)
    assert header(RasterFile(str(path))).left_out is None


def test_rasters_of_a_geopackage_are_selected_by_table(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    values = np.arange(256 * 256, dtype=np.uint8).reshape(1, 256, 256)
    profile = {
        "driver": "GPKG",
        "count": 1,
        "height": 256,
        "width": 256,
        "dtype": "uint8",
        "crs": CRS,
        "transform": TRANSFORM,
    }
    for table, added, append in (("one", 0, "NO"), ("two", 7, "YES")):
        options = {"RASTER_TABLE": table, "APPEND_SUBDATASET": append, "TILE_FORMAT": "PNG"}
        with rasterio.open(path, "w", **profile, **options) as dataset:
            dataset.write(values + np.uint8(added))
    with pytest.raises(InputError, match="contains several arrays; select one with `variable`: one, two"):
        header(RasterFile(str(path)))
    assert list_variables(str(path)) == [Variable("one"), Variable("two")]
    window = Window(0, 0, 256, 256)
    assert (read(RasterFile(str(path), "two", bands=(1,)), window) == values + np.uint8(7)).all()
    with served(tmp_path) as address:
        assert (read(RasterFile(f"{address}/a.gpkg", "one", bands=(1,)), window) == values).all()
    assert header(RasterFile(str(path), "two", bands=(1,))).grid.affine.almost_equals(TRANSFORM)


def test_arrays_of_nested_zarr_groups_are_listed(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "a.zarr", mode="w")
    root.create_array("red", data=VALUES)
    root.create_group("measurements/r10m").create_array("blue", data=VALUES)
    assert [v.name for v in list_variables(str(tmp_path / "a.zarr"))] == ["measurements/r10m/blue", "red"]


def test_everything_left_out_is_reported_once(tmp_path: Path) -> None:
    """Of sources, their masks, labels and split; plainly, however many files of a mosaic are alike."""
    write_raster(tmp_path / "a.tif", VALUES[None])
    as_tiff(tmp_path / "pages.tif")
    with rasterio.open(tmp_path / "pages.tif", "r+") as dataset:
        dataset.crs, dataset.transform = CRS, TRANSFORM
    shutil.copy(tmp_path / "pages.tif", tmp_path / "more.tif")
    write_raster(tmp_path / "two.tif", np.stack([VALUES, VALUES]))
    plain, pages, more, two = (RasterFile(str(tmp_path / f"{name}.tif")) for name in ("a", "pages", "more", "two"))

    def remarks(source: Source, labels: object = None, split: object = None) -> list[str]:
        opened = (open_source(source, GRID),)
        return file_remarks(PreparedScene("s", GRID, opened, labels or NoLabels(), split or NoSplit(), ()))  # type: ignore[arg-type]  # stand-ins

    assert remarks(Source("a", ((plain,),))) == []
    assert remarks(Source("a", ((pages,),))) == [header(pages).left_out]
    assert remarks(Source("a", ((pages, more),))) == [f"{header(pages).left_out} (and so on, for 2 files)"]
    mask = Mask(RasterFile(two.url, bands=(1,)), valid=(1,))
    chosen = Mask(mask.file, valid=(1,), chosen=False)
    assert remarks(Source("a", ((plain,),), mask=mask)) == []
    assert remarks(Source("a", ((plain,),), mask=chosen)) == [
        f"mask {two.url} has 2 bands, of which the first is used; choose one with `mask.band`"
    ]
    labelled = open_source(Source("a", ((pages,),)), GRID).layers[0][0]
    labels = RasterLabels(labelled.file, labelled.alignment, GRID, (), ())
    assert remarks(Source("a", ((plain,),)), labels) == [header(pages).left_out]
    assert remarks(Source("a", ((plain,),)), None, open_split_raster(pages.url, GRID)) == [header(pages).left_out]
    assert remarks(Source("a", ((plain,),), notes=("of a page",))) == ["of a page"]
