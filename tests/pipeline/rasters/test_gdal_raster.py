"""No data in files that GDAL reads: compared before any arithmetic, exactly, in the file's own data type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import Header, RasterFile
from pipeline.rasters.raster import open_raster
from pipeline.rasters.resample import Alignment, read_aligned
from tests.support.scenes import CRS, TRANSFORM, write_raster

SHAPE = (5, 7)
EVERYWHERE = Window(0, 0, *SHAPE)


def read(file: RasterFile) -> tuple[Any, Any, Header]:
    with open_raster(file) as raster:
        values, valid = raster.read(EVERYWHERE)
        return values, valid, raster.header


def viewed(file: RasterFile) -> Any:
    """Where the dataset for resampling has data."""
    with open_raster(file) as raster, raster.dataset(EVERYWHERE) as bands:
        values = bands.dataset.read(list(bands.indexes))
        if bands.nodata is not None and not np.isnan(bands.nodata):
            return (values != bands.nodata).all(axis=0)
        return np.isfinite(values.astype(float)).all(axis=0)


def picture(dtype: str, holes: dict[tuple[int, int], Any]) -> Any:
    values = np.arange(35, dtype=dtype).reshape(1, *SHAPE) + np.array(1, dtype)
    for place, value in holes.items():
        values[(0, *place)] = value
    return values


def with_nodata(folder: Path, values: np.ndarray, text: str) -> str:
    """Write a GeoTIFF whose nodata value is stated by a text, which rasterio cannot pass on for 64-bit integers."""
    plain = write_raster(folder / "plain.tif", values)
    with rasterio.open(plain) as dataset:
        rasterio.shutil.copy(dataset, folder / "plain.vrt", driver="VRT")
    xml = (folder / "plain.vrt").read_text().replace("<ColorInterp>", f"<NoDataValue>{text}</NoDataValue><ColorInterp>")
    (folder / "plain.vrt").write_text(xml)
    with rasterio.open(folder / "plain.vrt") as dataset:
        rasterio.shutil.copy(dataset, folder / "a.tif", driver="GTiff")
    return str(folder / "a.tif")


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint64", 2**64 - 1),
        ("uint64", 2**53 + 1),
        ("int64", 2**63 - 1),
        ("int64", -(2**63)),
        ("int64", -9999),
        ("uint32", 2**32 - 1),
        ("int16", -32768),
        ("uint8", 0),
    ],
)
@pytest.mark.parametrize("stated", ["file", "configuration"])
def test_extreme_nodata_values_of_integers_are_exact(tmp_path: Path, dtype: str, nodata: int, stated: str) -> None:
    near = nodata + 1 if nodata <= 0 else nodata - 1
    values = picture(dtype, {(1, 2): nodata, (3, 3): near})
    if stated == "file":
        file = RasterFile(with_nodata(tmp_path, values, str(nodata)))
        with rasterio.open(file.url) as dataset:
            expected = dataset.read_masks(1) > 0  # GDAL's own rule
    else:
        file = RasterFile(str(write_raster(tmp_path / "a.tif", values)), nodata=nodata)
        expected = values[0] != np.array(nodata, dtype)
    found, valid, head = read(file)
    assert (found == values).all()
    assert np.argwhere(~valid).tolist() == np.argwhere(~expected).tolist() == [[1, 2]]
    assert list(head.nodata) == [nodata]
    assert (viewed(file) == valid).all()


@pytest.mark.parametrize(("dtype", "nodata"), [("uint32", 2**32 - 1), ("int32", 2**31 - 1), ("int32", -(2**31))])
def test_neighbors_of_a_large_nodata_value_are_resampled(tmp_path: Path, dtype: str, nodata: int) -> None:
    """GDAL's warper compares as float32, which these values and their neighbors share."""
    values = picture(dtype, {(1, 2): nodata, (3, 3): nodata - 1 if nodata > 0 else nodata + 1})
    file = RasterFile(str(write_raster(tmp_path / "a.tif", values, nodata=nodata)))
    grid = GeoBox(SHAPE, TRANSFORM * Affine.translation(0.25, 0.25), CRS)
    with open_raster(file) as raster:
        _, valid = read_aligned(raster, Alignment("resampled", resampling="nearest"), grid, EVERYWHERE)
    assert np.argwhere(~valid).tolist() == [[1, 2]]


@pytest.mark.parametrize("text", ["-3.4028234663852886e+38", "-3.40282e+38", "-3.4e+38"])
def test_lowest_float_is_nodata_however_many_digits_the_header_has(tmp_path: Path, text: str) -> None:
    values = picture("float32", {(1, 2): np.finfo(np.float32).min, (3, 3): -1e30, (0, 0): np.nan})
    path = with_nodata(tmp_path, values, text)
    with rasterio.open(path) as dataset:
        assert dataset.read_masks(1)[1, 2] == 0
    for nodata in (None, -3.4028235e38):  # the configured number is beyond the range of the type
        assert np.argwhere(~read(RasterFile(path, nodata=nodata))[1]).tolist() == [[0, 0], [1, 2]]


def test_value_next_to_a_float_nodata_value_is_data(tmp_path: Path) -> None:
    after = np.nextafter(np.float32(-9999), np.float32(0))
    path = str(write_raster(tmp_path / "a.tif", picture("float32", {(1, 2): -9999, (3, 3): after}), nodata=-9999))
    assert np.argwhere(~read(RasterFile(path))[1]).tolist() == [[1, 2]]


def test_nodata_of_packed_values_is_compared_before_scale_and_offset(tmp_path: Path) -> None:
    values = np.concatenate([picture("int16", {(1, 2): -9999}), picture("int16", {(4, 4): -9999})])
    path = write_raster(tmp_path / "a.tif", values, nodata=-9999)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.0001, 0.5), (-0.1, 20.0)
    found, valid, _ = read(RasterFile(str(path), unscale=True))
    assert np.argwhere(~valid).tolist() == [[1, 2], [4, 4]]
    np.testing.assert_allclose(found[0], values[0] * 0.0001 - 0.1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], values[1] * 0.5 + 20, rtol=1e-6)
    assert (viewed(RasterFile(str(path), unscale=True)) == valid).all()


def test_values_that_overflow_when_unscaled_are_not_data(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", picture("float32", {(2, 2): 1e30}))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (1e20,)
    assert np.argwhere(~read(RasterFile(str(path), unscale=True))[1]).tolist() == [[2, 2]]


def test_bands_of_different_types_are_compared_in_their_own(tmp_path: Path) -> None:
    first, second = picture("uint64", {(1, 2): 2**64 - 1, (1, 3): 2**64 - 2}), picture("int8", {(3, 3): -1})
    paths = []
    for name, values, nodata in (("one", first, 2**64 - 1), ("two", second, -1)):
        (tmp_path / name).mkdir()
        paths.append(with_nodata(tmp_path / name, values, str(nodata)))
    with rasterio.open(paths[0]) as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "both.vrt", driver="VRT")
    with rasterio.open(paths[1]) as dataset:
        rasterio.shutil.copy(dataset, tmp_path / "second.vrt", driver="VRT")
    band = (tmp_path / "second.vrt").read_text()
    band = band[band.index("<VRTRasterBand") : band.index("</VRTDataset>")].replace('band="1"', 'band="2"')
    text = (tmp_path / "both.vrt").read_text().replace("</VRTDataset>", band + "</VRTDataset>")
    (tmp_path / "both.vrt").write_text(text)
    file = RasterFile(str(tmp_path / "both.vrt"))
    _, valid, head = read(file)
    assert np.argwhere(~valid).tolist() == [[1, 2], [3, 3]]
    assert list(head.nodata) == [2**64 - 1, -1]
    assert (viewed(file) == valid).all()


def test_mask_file_beside_a_raster_is_applied(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", picture("uint16", {}))
    mask = np.full(SHAPE, 255, np.uint8)
    mask[0, 5] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    assert (tmp_path / "a.tif.msk").exists()
    assert np.argwhere(~read(RasterFile(str(path)))[1]).tolist() == [[0, 5]]


def test_stated_crs_places_a_file_without_one_and_contradictions_are_refused(tmp_path: Path) -> None:
    bare = str(write_raster(tmp_path / "a.tif", picture("uint8", {}), crs=None))
    assert read(RasterFile(bare))[2].grid.crs is None
    grid = read(RasterFile(bare, crs="EPSG:32632"))[2].grid
    assert (grid.crs.to_epsg(), grid.affine) == (32632, TRANSFORM)
    known = str(write_raster(tmp_path / "b.tif", picture("uint8", {})))
    assert read(RasterFile(known, crs=str(CRS)))[2].grid == read(RasterFile(known))[2].grid
    with pytest.raises(InputError, match=r"b\.tif: `crs` is WGS 84 \(EPSG:4326\), but the file states WGS 84 / UTM zone"):
        read(RasterFile(known, crs="EPSG:4326"))
    image = str(write_raster(tmp_path / "c.tif", picture("uint8", {}), crs=None, transform=Affine.identity()))
    with pytest.raises(InputError, match=r"c\.tif: `crs` cannot place it, because the file states no position"):
        read(RasterFile(image, crs="EPSG:4326"))


def test_point_registration_of_a_geotiff_is_half_a_pixel(tmp_path: Path) -> None:
    """The tie point of a raster with GTRasterTypeGeoKey PixelIsPoint is the center of its first pixel."""
    write_raster(tmp_path / "area.tif", picture("uint8", {}))
    with rasterio.open(tmp_path / "area.tif") as dataset:
        profile, values = dataset.profile, dataset.read()
    with rasterio.open(tmp_path / "point.tif", "w", **profile) as dataset:
        dataset.update_tags(AREA_OR_POINT="Point")
        dataset.write(values)
    raw = (tmp_path / "point.tif").read_bytes()
    corner = np.array([TRANSFORM.c, TRANSFORM.f]) + np.array([TRANSFORM.a, TRANSFORM.e]) / 2
    assert corner.astype("<f8").tobytes() in raw, "the file states the center"
    assert read(RasterFile(str(tmp_path / "point.tif")))[2].grid.affine == TRANSFORM
