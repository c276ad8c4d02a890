"""Encoded rasters are decoded as they are read, by any window, after the comparison with nodata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  # registers xarray's `rio` accessor
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import Resampling, reproject

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import Header, RasterFile
from pipeline.rasters.raster import header, open_raster, stamped
from pipeline.scenes.source import Source, open_source
from tests.support.scenes import CRS, TRANSFORM, write_raster

ROWS, COLUMNS = 24, 20
WHOLE, PART = Window(0, 0, ROWS, COLUMNS), Window(5, 3, 11, 13)
GRID = GeoBox((ROWS, COLUMNS), TRANSFORM, CRS)
GAPS = np.random.default_rng(1).random((ROWS, COLUMNS)) < 0.2


def embedding(bands: int) -> np.ndarray:
    """Random int8 values (band, y, x); -128 in all bands of the gaps, and nowhere else."""
    values = np.random.default_rng(bands).integers(-127, 128, (bands, ROWS, COLUMNS)).astype(np.int8)
    values[:, GAPS] = -128
    return values


def physical(values: np.ndarray) -> np.ndarray:
    """AlphaEarth's formula, with the gaps as NaN."""
    wide = values.astype(np.float64)
    return np.where(wide == -128, np.nan, np.sign(wide) * (wide / 127.5) ** 2).astype(np.float32)


def read(file: RasterFile, window: Window = WHOLE) -> tuple[np.ndarray, np.ndarray, Header]:
    with open_raster(file) as raster:
        values, valid = raster.read(window)
        return values, valid, raster.header


def as_zarr(folder: Path, **arrays: np.ndarray) -> str:
    """Write arrays (band, y, x) or (y, x) as one store, with the bands last as geotessera stores them."""
    coordinates = {
        "y": TRANSFORM.f + TRANSFORM.e * (np.arange(ROWS) + 0.5),
        "x": TRANSFORM.c + TRANSFORM.a * (np.arange(COLUMNS) + 0.5),
    }
    described = {
        name: (("y", "x", "band"), values.transpose(1, 2, 0)) if values.ndim == 3 else (("y", "x"), values)
        for name, values in arrays.items()
    }
    path = folder / "a.zarr"
    xr.Dataset(described, coords=coordinates).rio.write_crs(CRS).to_zarr(path, consolidated=False)
    return str(path)


@pytest.mark.parametrize("declared", [-128, None])
@pytest.mark.parametrize("kind", ["GeoTIFF", "Zarr"])
def test_alphaearth_is_decoded_in_64_bands_and_its_gaps_have_no_data(
    kind: str, declared: int | None, tmp_path: Path
) -> None:
    stored = embedding(64)
    if kind == "Zarr":
        file = RasterFile(as_zarr(tmp_path, e=stored), "e", ("y", "x", "band"), nodata=declared, decode="alphaearth")
    else:
        file = RasterFile(str(write_raster(tmp_path / "a.tif", stored, nodata=declared)), decode="alphaearth")
    values, valid, head = read(file)
    assert head.dtypes == ("float32",) * 64
    assert (valid == ~GAPS).all()
    assert (values[:, valid] == physical(stored)[:, valid]).all()
    part, there, _ = read(file, PART)
    assert part.tobytes() == values[:, *PART.slices].tobytes()
    assert (there == valid[PART.slices]).all()


def test_nodata_is_compared_with_values_as_stored(tmp_path: Path) -> None:
    stored = embedding(2)
    stored[0, 2, 3], stored[1, 4, 5] = 1, 0  # decoded: 0.00006 and 0
    path = str(write_raster(tmp_path / "a.tif", stored))
    assert not read(RasterFile(path, nodata=1, decode="alphaearth"))[1][2, 3]
    assert not read(RasterFile(path, nodata=0, decode="alphaearth"))[1][4, 5]
    stored[:, 7, 8] = -128
    write_raster(tmp_path / "a.tif", stored)
    assert not read(RasterFile(path, nodata=1, decode="alphaearth"))[1][7, 8], "-128 is no data with another value, too"


def test_selected_bands_are_decoded(tmp_path: Path) -> None:
    stored = embedding(5)
    path = str(write_raster(tmp_path / "a.tif", stored))
    values, valid, _ = read(RasterFile(path, bands=(4, 2), decode="alphaearth"))
    assert (values[:, valid] == physical(stored[[3, 1]])[:, valid]).all()


BOTTOM_UP = TRANSFORM * Affine.translation(0, ROWS) * Affine.scale(1, -1)


@pytest.mark.parametrize("resampling", [None, "bilinear"])
def test_a_bottom_up_file_is_copied_pixel_by_pixel(resampling: str | None, tmp_path: Path) -> None:
    """As AlphaEarth's files are: their rows run from south to north."""
    stored = embedding(64)
    path = str(write_raster(tmp_path / "a.tif", stored[:, ::-1], transform=BOTTOM_UP, nodata=-128))
    file = RasterFile(path, decode="alphaearth")
    assert header(file).grid == GRID
    opened = open_source(Source("s", ((file,),), resampling=resampling), GRID)
    assert str(opened.layers[0][0].alignment) == "exact"
    values, valid = opened.read(WHOLE)
    assert (valid == ~GAPS).all()
    assert (values == np.nan_to_num(physical(stored))).all()
    part, there = opened.read(PART)
    assert part.tobytes() == values[:, *PART.slices].tobytes()
    assert (there == valid[PART.slices]).all()


def test_a_bottom_up_file_is_resampled_in_its_place(tmp_path: Path) -> None:
    stored = embedding(3)
    coarse = GeoBox((ROWS // 2, COLUMNS // 2), TRANSFORM * Affine.scale(2), CRS)
    found = []
    for name, values, place in (("n", stored, TRANSFORM), ("s", stored[:, ::-1], BOTTOM_UP)):
        path = str(write_raster(tmp_path / f"{name}.tif", values, transform=place, nodata=-128))
        source = Source("s", ((RasterFile(path, decode="alphaearth"),),), resampling="average")
        found.append(open_source(source, coarse).read(Window(2, 3, 7, 5)))
    assert (found[0][0] == found[1][0]).all()
    assert (found[0][1] == found[1][1]).all()


def test_a_bottom_up_file_is_turned_with_its_scales(tmp_path: Path) -> None:
    stored, scales = embedding(4), np.random.default_rng(5).random((1, ROWS, COLUMNS)).astype(np.float32)
    own = RasterFile(str(write_raster(tmp_path / "s.tif", scales[:, ::-1], transform=BOTTOM_UP)))
    path = str(write_raster(tmp_path / "a.tif", stored[:, ::-1], transform=BOTTOM_UP))
    values, _, _ = read(RasterFile(path, decode="tessera", scales=own), PART)
    assert (values == (stored.astype(np.float32) * scales)[:, *PART.slices]).all()


def test_nodata_of_scales_is_no_data(tmp_path: Path) -> None:
    scales = np.ones((1, ROWS, COLUMNS), np.float32)
    scales[0, 3, 4] = -1
    own = RasterFile(str(write_raster(tmp_path / "s.tif", scales, nodata=-1)))
    path = str(write_raster(tmp_path / "a.tif", embedding(2)))
    _, valid, _ = read(RasterFile(path, decode="tessera", scales=own))
    assert np.argwhere(~valid).tolist() == [[3, 4]]


def test_resampling_averages_decoded_values_and_gaps_stay_out_of_it(tmp_path: Path) -> None:
    stored = embedding(3)
    path = str(write_raster(tmp_path / "a.tif", stored, nodata=-128))
    coarse = GeoBox((ROWS // 2, COLUMNS // 2), TRANSFORM * Affine.scale(2), CRS)
    source = Source("s", ((RasterFile(path, decode="alphaearth"),),), resampling="average")
    values, valid = open_source(source, coarse).read(Window(0, 0, *coarse.shape))
    blocks = physical(stored).reshape(3, ROWS // 2, 2, COLUMNS // 2, 2).swapaxes(2, 3).reshape(3, *coarse.shape, 4)
    counts = (~np.isnan(blocks[0])).sum(axis=2)
    assert (valid == (counts > 0)).all()
    assert np.abs(values - np.nansum(blocks, axis=3) / np.maximum(counts, 1))[:, valid].max() < 1e-6


@pytest.mark.parametrize("per_band", [False, True])
@pytest.mark.parametrize("kind", ["GeoTIFF", "Zarr"])
def test_tessera_is_multiplied_by_the_scales_of_its_pixels(kind: str, per_band: bool, tmp_path: Path) -> None:
    stored = embedding(128)
    scales = np.random.default_rng(5).random((128 if per_band else 1, ROWS, COLUMNS)).astype(np.float32)
    scales[:, 2, 3] = np.nan
    if kind == "Zarr":
        url = as_zarr(tmp_path, embeddings=stored, scales=scales if per_band else scales[0])
        axes = ("y", "x", "band")
        own = RasterFile(url, "scales", axes if per_band else None)
        file = RasterFile(url, "embeddings", axes, decode="tessera", scales=own)
    else:
        own = RasterFile(str(write_raster(tmp_path / "s.tif", scales)))
        file = RasterFile(str(write_raster(tmp_path / "a.tif", stored)), decode="tessera", scales=own)
    values, valid, head = read(file)
    wanted = stored.astype(np.float32) * scales
    assert head.bands == 128
    assert np.argwhere(~valid).tolist() == [[2, 3]], "-128 is a value of TESSERA"
    assert (values[:, valid] == wanted[:, valid]).all()
    part, there, _ = read(file, PART)
    assert (part == wanted[:, *PART.slices])[:, there].all()
    few, _, _ = read(RasterFile(file.url, file.variable, file.axes, (9, 3), decode="tessera", scales=own))
    assert (few == wanted[[8, 2]])[:, valid].all(), "bands and their own scales"


def test_the_layout_of_geotessera_stores_is_read(tmp_path: Path) -> None:
    """One group per UTM zone, (time, band, y, x); scales are NaN on water and infinite where nothing was written."""
    stored = np.stack([embedding(128), embedding(128)[::-1]])
    scales = np.random.default_rng(5).random((2, ROWS, COLUMNS)).astype(np.float32)
    scales[1, 2, 3], scales[1, 4, 5] = np.nan, np.inf
    stored[1, :, 4, 5] = 0
    group = zarr.open_group(tmp_path / "t.zarr", mode="w").create_group("utm33")
    group.attrs.update({"spatial:dimensions": ["y", "x"], "spatial:transform": list(TRANSFORM)[:6], "proj:code": CRS})
    arrays = {
        "embeddings": (stored, ("time", "band", "y", "x"), 0),
        "scales": (scales, ("time", "y", "x"), np.inf),
        "time": (np.array([2023, 2024], np.int32), ("time",), 0),
        "y": (TRANSFORM.f + TRANSFORM.e * (np.arange(ROWS) + 0.5), ("y",), 0),
        "x": (TRANSFORM.c + TRANSFORM.a * (np.arange(COLUMNS) + 0.5), ("x",), 0),
    }
    for name, (values, dims, fill) in arrays.items():
        group.create_array(name, data=values, dimension_names=dims, fill_value=fill)
    url, year = str(tmp_path / "t.zarr"), (("time", 2024),)
    own = RasterFile(url, "utm33/scales", select=year)
    values, valid, head = read(RasterFile(url, "utm33/embeddings", select=year, decode="tessera", scales=own))
    assert head.grid == GRID
    assert np.argwhere(~valid).tolist() == [[2, 3], [4, 5]]
    assert (values[:, valid] == stored[1][:, valid].astype(np.float32) * scales[1][valid]).all()


def test_scales_that_do_not_belong_to_the_embedding_are_refused(tmp_path: Path) -> None:
    path = str(write_raster(tmp_path / "a.tif", embedding(4)))

    def refusal(scales: np.ndarray, **place: object) -> str:
        other = RasterFile(str(write_raster(tmp_path / "s.tif", scales.astype(np.float32), **place)))
        with pytest.raises(InputError) as caught:
            header(RasterFile(path, decode="tessera", scales=other))
        return str(caught.value)

    plane = np.ones((1, ROWS, COLUMNS))
    assert "s.tif: has 3 bands of scales for the 4 bands of " in refusal(plane.repeat(3, axis=0))
    for wrong in (
        refusal(plane[:, 1:]),
        refusal(plane, transform=TRANSFORM * Affine.translation(0.5, 0)),
        refusal(plane, crs="EPSG:32632"),
        refusal(plane, crs=None),
    ):
        assert "s.tif: the scales of " in wrong
        assert "must be on its grid, pixel by pixel, but they are " in wrong


def test_changed_scales_are_read_again(tmp_path: Path) -> None:
    scales = RasterFile(str(write_raster(tmp_path / "s.tif", np.ones((1, ROWS, COLUMNS), np.float32))))
    file = RasterFile(str(write_raster(tmp_path / "a.tif", embedding(2))), decode="tessera", scales=scales)
    before = stamped(file)
    assert header(before).bands == 2
    write_raster(tmp_path / "s.tif", np.ones((3, ROWS + 1, COLUMNS), np.float32))
    assert stamped(file) != before
    with pytest.raises(InputError, match="has 3 bands of scales"):
        header(file)


@pytest.mark.parametrize("encoding", ["alphaearth", "tessera"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_values_that_are_not_int8_are_refused(encoding: str, dtype: str, tmp_path: Path) -> None:
    path = str(write_raster(tmp_path / "a.tif", np.ones((2, ROWS, COLUMNS), dtype)))
    scales = RasterFile(str(write_raster(tmp_path / "s.tif", np.ones((1, ROWS, COLUMNS), np.float32))))
    chosen = scales if encoding == "tessera" else None
    with pytest.raises(InputError, match=rf"a\.tif: holds {dtype}, but `decode: {encoding}` is of int8 values; leave out"):
        header(RasterFile(path, decode=encoding, scales=chosen))  # type: ignore[arg-type]  # a parameter of the test


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64"])
def test_decibels_of_power_and_no_data_where_there_is_none(dtype: str, tmp_path: Path) -> None:
    power = np.random.default_rng(0).uniform(1, 900, (2, ROWS, COLUMNS)).astype(dtype)
    power[0, 3, 4], power[1, 5, 6] = 0, 0 if dtype == "uint16" else -2.5
    file = RasterFile(str(write_raster(tmp_path / "a.tif", power)), decode="db")
    opened = open_source(Source("s", ((file,),)), GRID)
    values, valid = opened.read(WHOLE)
    assert opened.dtype == values.dtype == np.float32
    assert np.argwhere(~valid).tolist() == [[3, 4], [5, 6]]
    assert (values[:, valid] == (10 * np.log10(power.astype(np.float64)[:, valid])).astype(np.float32)).all()
    assert values[:, 3, 4].tolist() == [0, 0]
    part, _ = opened.read(PART)
    assert part.tobytes() == values[:, *PART.slices].tobytes()


def test_power_is_averaged_before_it_becomes_decibels(tmp_path: Path) -> None:
    power = np.random.default_rng(0).exponential(0.1, (1, ROWS, COLUMNS)).astype(np.float32)
    power[0, 4, 6] = 0
    path = write_raster(tmp_path / "a.tif", power)
    coarse = GeoBox((ROWS // 2, COLUMNS // 2), TRANSFORM * Affine.scale(2), CRS)
    source = Source("s", ((RasterFile(str(path), decode="db"),),), resampling="average")
    values, valid = open_source(source, coarse).read(Window(0, 0, *coarse.shape))
    mean = np.empty((1, *coarse.shape), np.float32)
    absent = np.where(power > 0, power, -1)
    reproject(
        absent, mean, src_transform=TRANSFORM, src_crs=CRS, src_nodata=-1, dst_transform=coarse.affine, dst_crs=CRS,
        resampling=Resampling.average,
    )  # fmt: skip  # a call of GDAL
    assert valid.all()
    assert np.abs(values - 10 * np.log10(mean)).max() < 1e-5


def test_scale_and_offset_come_before_decibels(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.full((1, ROWS, COLUMNS), 40, np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5,), (-10.0,)
    file = RasterFile(str(path), unscale=True, decode="db")
    assert open_source(Source("s", ((file,),)), GRID).read(WHOLE)[0][0, 0, 0] == 10
    changed = Source("s", ((file,),), gain=2, offset=-5)
    assert open_source(changed, GRID).read(WHOLE)[0][0, 0, 0] == 15, "gain and offset come after decibels"
