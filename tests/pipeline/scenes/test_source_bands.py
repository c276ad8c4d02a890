"""Bands of a source by name: derived ones, those that are kept, and what they do to validity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.grid import Window, windows
from pipeline.parallel.executor import ThreadExecutor
from pipeline.rasters.header import RasterFile
from pipeline.scenes.coverage import bands_without_data
from pipeline.scenes.source import Source, open_source
from pipeline.stac.masks import Mask
from tests.support.scenes import CRS, TRANSFORM, write_raster

SHAPE = (24, 20)
WHOLE = Window(0, 0, *SHAPE)
GRID = GeoBox(SHAPE, TRANSFORM, CRS)
VALUES = np.random.default_rng(0).integers(0, 9, (2, *SHAPE)).astype(np.uint8)
NDVI = ("ndvi", "(nir - red) / (nir + red)")


def wanted_index(values: np.ndarray) -> np.ndarray:
    """(nir - red) / (nir + red) of (red, nir), NaN where there is none."""
    red, nir = values.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((nir - red) / (nir + red), np.float32)


def source(folder: Path, values: np.ndarray = VALUES, *, nodata: float | None = None, **declared: object) -> Source:
    path = write_raster(folder / "a.tif", values, nodata=nodata)
    named = {"band_names": ("red", "nir"), "derive": (NDVI,)} | declared
    return Source("s", ((RasterFile(str(path)),),), **named)  # type: ignore[arg-type]  # by name


def test_derived_bands_are_appended_and_pixels_without_result_have_no_data(tmp_path: Path) -> None:
    opened = open_source(source(tmp_path), GRID)
    assert (opened.bands, opened.dtype, opened.declared.kept) == (3, np.float32, ("red", "nir", "ndvi"))
    values, valid = opened.read(WHOLE)
    index = wanted_index(VALUES)
    assert np.isnan(index).any()
    assert (valid == ~np.isnan(index)).all()
    assert (values[:, valid] == np.stack([*VALUES, index])[:, valid]).all()
    assert not values[:, ~valid].any(), "0 in all bands where there is no data"


@pytest.mark.parametrize("side", [5, 7, 24])
def test_any_window_is_part_of_the_whole(side: int, tmp_path: Path) -> None:
    opened = open_source(source(tmp_path, derive=(NDVI, ("root", "log(sqrt(nir) + 1) ** 1.7"))), GRID)
    values, valid = opened.read(WHOLE)
    for window in windows(SHAPE, side):
        part, there = opened.read(window)
        assert part.tobytes() == values[:, *window.slices].tobytes()
        assert (there == valid[window.slices]).all()


def test_kept_bands_are_those_named_in_their_order(tmp_path: Path) -> None:
    opened = open_source(source(tmp_path, keep=("ndvi", "red")), GRID)
    values, valid = opened.read(WHOLE)
    assert opened.bands == 2
    assert (values[:, valid] == np.stack([wanted_index(VALUES), VALUES[0]])[:, valid]).all()
    plain = open_source(source(tmp_path, derive=(), keep=("nir",)), GRID)
    assert plain.dtype == np.uint8, "kept without computing"
    assert (plain.read(WHOLE)[0] == VALUES[1:]).all()
    assert plain.bytes_per_pixel == 3, "memory of the bands that are read"


def test_nodata_never_enters_an_expression(tmp_path: Path) -> None:
    values = VALUES.astype(np.int16) + 1
    values[1, 4, 5] = -9999
    found, valid = open_source(source(tmp_path, values, nodata=-9999), GRID).read(WHOLE)
    assert np.argwhere(~valid).tolist() == [[4, 5]]
    assert np.abs(found[2]).max() <= 1


def test_expressions_see_values_after_gain_and_offset(tmp_path: Path) -> None:
    found, _ = open_source(source(tmp_path, gain=0.5, offset=3.0, derive=(("double", "2 * red"),)), GRID).read(WHOLE)
    assert (found[2] == 2 * (VALUES[0] * 0.5 + 3)).all()


def test_bands_of_files_with_different_resolutions_meet_on_the_grid(tmp_path: Path) -> None:
    """The expression sees the values that the source has without it."""
    coarse = VALUES[1:, ::2, ::2] + np.uint8(1)
    paths = [
        write_raster(tmp_path / "red.tif", VALUES[:1]),
        write_raster(tmp_path / "nir.tif", coarse, transform=TRANSFORM * Affine.scale(2)),
    ]
    layers = tuple((RasterFile(str(path)),) for path in paths)
    for resampling in (None, "bilinear"):
        plain, _ = open_source(Source("s", layers, resampling=resampling), GRID).read(WHOLE)
        named = Source("s", layers, resampling=resampling, band_names=("red", "nir"), derive=(NDVI,))
        found, valid = open_source(named, GRID).read(WHOLE)
        assert (found[2] == wanted_index(plain))[valid].all()


def test_masks_mosaics_and_finer_sources_have_derived_bands(tmp_path: Path) -> None:
    values = VALUES + np.uint8(1)
    quality = np.zeros((1, *SHAPE), np.uint8)
    quality[0, :3] = 8
    mask = Mask(RasterFile(str(write_raster(tmp_path / "q.tif", quality)), nodata=np.nan), invalid=(8,))
    left = np.where(np.arange(SHAPE[1]) < 9, values, 0).astype(np.uint8)
    tiles = [
        RasterFile(str(write_raster(tmp_path / "l.tif", left, nodata=0))),
        RasterFile(str(write_raster(tmp_path / "r.tif", values, nodata=0))),
    ]
    named = Source("s", (tuple(tiles),), mask=mask, scale=2, band_names=("red", "nir"), derive=(NDVI,))
    half = GeoBox((SHAPE[0] // 2, SHAPE[1] // 2), TRANSFORM * Affine.scale(2), CRS)
    found, valid = open_source(named, half).read(Window(0, 0, *half.shape))
    assert (valid == (quality[0] == 0)).all()
    assert (found[2] == wanted_index(values))[valid].all()


def test_alphaearth_bands_can_be_named_and_derived_from(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-128, 128, (64, *SHAPE)).astype(np.int8)
    names = tuple(f"A{i:02}" for i in range(64))
    path = str(write_raster(tmp_path / "a.tif", stored))
    length = f"sqrt({' + '.join(f'{name} ** 2' for name in names)})"
    named = Source(
        "s", ((RasterFile(path, decode="alphaearth"),),), band_names=names, derive=(("length", length),), keep=("length",)
    )
    found, valid = open_source(named, GRID).read(WHOLE)
    wide = stored.astype(np.float64)
    decoded = (np.sign(wide) * (wide / 127.5) ** 2).astype(np.float32).astype(np.float64)
    assert (valid == (stored != -128).all(axis=0)).all()
    assert np.abs(found[0] - np.sqrt((decoded**2).sum(axis=0)))[valid].max() < 1e-6


def test_names_of_another_number_of_bands_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source 's': has 2 bands \(.*a\.tif\), but 3 names: red, nir, swir\. Name each"):
        open_source(source(tmp_path, band_names=("red", "nir", "swir"), derive=()), GRID)


def test_scales_are_among_the_files_of_a_source(tmp_path: Path) -> None:
    scales = RasterFile(str(write_raster(tmp_path / "s.tif", np.ones((1, *SHAPE), np.float32))))
    path = str(write_raster(tmp_path / "a.tif", np.ones((2, *SHAPE), np.int8)))
    declared = Source("s", ((RasterFile(path, decode="tessera", scales=scales),),))
    assert [file.url for file in declared.files] == [path, scales.url]
    opened = open_source(declared, GRID)
    assert [file.url for file in opened.files] == [path, scales.url]
    assert all(file.stamp for file in opened.files)


def test_a_band_without_data_is_named_whatever_is_derived(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[1] = 0
    opened = open_source(source(tmp_path, values, nodata=0, keep=("ndvi",)), GRID)
    assert bands_without_data(ThreadExecutor(1), opened, SHAPE) == ["2"]
    assert bands_without_data(ThreadExecutor(1), replace(opened, declared=replace(opened.declared, keep=())), SHAPE) == ["2"]
