"""A raster comes to a grid pixel for pixel where they nest, and by GDAL's exact resampling where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

import pipeline.align
from mibf.errors import InputError
from pipeline.align import Alignment, align, read_aligned
from pipeline.grid import Window, windows
from pipeline.raster import RasterFile, header, open_raster
from tests.conftest import CRS, TRANSFORM, write_raster

GRID = GeoBox((60, 50), TRANSFORM, CRS)


def aligned(path: Path, grid: GeoBox = GRID, *, resampling: str | None = None) -> tuple[RasterFile, Alignment]:
    file = RasterFile(str(path))
    return file, align(file, header(file), grid, resampling=resampling)


def read(path: Path, grid: GeoBox = GRID, *, side: int = 64, resampling: str | None = None) -> np.ndarray:
    """The raster on the whole grid, by windows; NaN where there is no data."""
    file, alignment = aligned(path, grid, resampling=resampling)
    rows, columns = grid.shape
    whole = np.full((header(file).bands, rows, columns), np.nan)
    with open_raster(file) as raster:
        for window in windows((rows, columns), side):
            values, valid = read_aligned(raster, alignment, grid, window)
            whole[:, *window.slices] = np.where(valid, values, np.nan)
    return whole


def random_raster(path: Path, rows: int, columns: int, **where: Any) -> np.ndarray:
    values = np.random.default_rng(rows + columns).integers(1, 60000, (2, rows, columns)).astype(np.uint16)
    write_raster(path, values, **where)
    return values


@given(st.integers(-70, 70), st.integers(-60, 60), st.integers(5, 64))
@settings(max_examples=40)
def test_a_raster_that_is_only_shifted_is_cut_pixel_for_pixel(
    tmp_path_factory: pytest.TempPathFactory, down: int, right: int, side: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"shift{down}_{right}.tif"
    values = random_raster(path, 40, 70, transform=TRANSFORM * Affine.translation(right, down))
    rows, columns = slice(max(0, down), min(60, 40 + down)), slice(max(0, right), min(50, 70 + right))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        with pytest.raises(InputError, match="does not overlap"):
            aligned(path)
        return
    wanted = np.full((2, 60, 50), np.nan)
    wanted[:, rows, columns] = values[:, rows.start - down : rows.stop - down, columns.start - right : columns.stop - right]
    assert aligned(path)[1].kind == "exact"
    np.testing.assert_array_equal(read(path, side=side), wanted)


@given(st.sampled_from([2, 3, 4]), st.integers(-3, 3), st.integers(-3, 3), st.integers(5, 64))
@settings(max_examples=40)
def test_a_coarser_raster_whose_pixels_are_whole_pixels_of_the_grid_is_repeated(
    tmp_path_factory: pytest.TempPathFactory, times: int, down: int, right: int, side: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"coarse{times}_{down}_{right}.tif"
    placed = TRANSFORM * Affine.scale(times) * Affine.translation(right, down)
    values = random_raster(path, 12, 9, transform=placed)
    assert aligned(path)[1].coarser == times
    found = read(path, side=side)
    for y in range(60):
        for x in range(0, 50, 7):
            row, column = y // times - down, x // times - right
            inside = 0 <= row < 12 and 0 <= column < 9
            np.testing.assert_array_equal(found[:, y, x], values[:, row, column] if inside else np.nan)


def test_a_method_that_is_asked_for_is_used_on_a_coarser_raster(tmp_path: Path) -> None:
    values = random_raster(tmp_path / "a.tif", 30, 25, transform=TRANSFORM * Affine.scale(2)).astype(float)
    assert aligned(tmp_path / "a.tif", resampling="bilinear")[1].kind == "resampled"
    found = read(tmp_path / "a.tif", resampling="bilinear")
    # A pixel's centre lies a quarter of a coarse pixel from its own's: weights of 3/4 and 1/4 along each axis.
    rows = 0.75 * values[:, 1:] + 0.25 * values[:, :-1]
    np.testing.assert_allclose(found[:, 2::2, 2::2], 0.75 * rows[..., 1:] + 0.25 * rows[..., :-1], rtol=1e-5)


@pytest.mark.parametrize("off", [0.2, 0.5])
def test_a_part_of_a_pixel_is_no_nesting(tmp_path: Path, off: float) -> None:
    random_raster(tmp_path / "a.tif", 60, 50, transform=TRANSFORM * Affine.translation(off, 0))
    assert aligned(tmp_path / "a.tif")[1].kind == "resampled"
    random_raster(tmp_path / "b.tif", 30, 25, transform=TRANSFORM * Affine.scale(2) * Affine.translation(off, 0))
    assert aligned(tmp_path / "b.tif")[1].kind == "resampled"


TURNED = TRANSFORM * Affine.translation(25, 30) * Affine.rotation(20) * Affine.translation(-60, -60)
DEGREES = Affine(0.0004, 0, 13.537, 0, -0.00025, 52.343)
FINE = TRANSFORM * Affine.translation(-1.3, -2.7) * Affine.scale(0.3)


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "average", "lanczos", "mode"])
@pytest.mark.parametrize(
    ("transform", "crs", "shape"),
    [(DEGREES, "EPSG:4326", (30, 25)), (TURNED, CRS, (120, 120)), (FINE, CRS, (240, 220))],
    ids=["another CRS", "rotated", "finer"],
)
def test_a_pixel_does_not_depend_on_the_window(
    tmp_path: Path, transform: Affine, crs: str, shape: tuple[int, int], resampling: str
) -> None:
    random_raster(tmp_path / "a.tif", *shape, transform=transform, crs=crs, nodata=0)
    whole = read(tmp_path / "a.tif", side=60, resampling=resampling)
    assert np.isfinite(whole).mean() > 0.25
    for side in (7, 32):  # to the last bit of a float32: a place in a rotated grid is rounded as it is added up
        np.testing.assert_allclose(read(tmp_path / "a.tif", side=side, resampling=resampling), whole, rtol=2e-7)


def test_resampling_is_gdals_of_the_whole(tmp_path: Path) -> None:
    random_raster(tmp_path / "a.tif", 30, 25, transform=DEGREES, crs="EPSG:4326", nodata=0)
    with (
        rasterio.open(tmp_path / "a.tif") as dataset,
        WarpedVRT(
            dataset, crs=CRS, transform=TRANSFORM, height=60, width=50, resampling=Resampling.bilinear, nodata=np.nan,
            dtype="float32", tolerance=1e-6,
        ) as view,
    ):  # fmt: skip
        wanted = view.read()
    np.testing.assert_array_equal(read(tmp_path / "a.tif", side=16), wanted)


def test_a_much_finer_raster_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_raster(tmp_path / "a.tif", 240, 220, transform=FINE)
    whole = read(tmp_path / "a.tif", resampling="average")
    monkeypatch.setattr(pipeline.align, "HELD", 5000)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", resampling="average"), whole)


def test_images_without_a_crs_are_taken_pixel_on_pixel(tmp_path: Path) -> None:
    image = GeoBox((60, 50), Affine.identity(), None)
    values = random_raster(tmp_path / "a.tif", 60, 50, crs=None)  # its corners are of some other image
    np.testing.assert_array_equal(read(tmp_path / "a.tif", image), values)
    coarse = random_raster(tmp_path / "b.tif", 15, 10, crs=None)
    with pytest.raises(InputError, match="15 x 10 pixels without a CRS"):
        read(tmp_path / "b.tif", image)
    fourfold = GeoBox((60, 40), Affine.identity(), None)
    np.testing.assert_array_equal(read(tmp_path / "b.tif", fourfold), coarse.repeat(4, axis=1).repeat(4, axis=2))
    random_raster(tmp_path / "c.tif", 120, 100, crs=None)
    with pytest.raises(InputError, match="2 times as fine: give the source `scale: 2`"):
        read(tmp_path / "c.tif", image)


def test_the_window_of_a_grid_of_another_crs_reads_just_what_it_needs(tmp_path: Path) -> None:
    """A reader that counts: a corner of the grid does not bring in the whole raster."""
    random_raster(tmp_path / "a.tif", 300, 250, transform=Affine(4e-5, 0, 13.537, 0, -2.5e-5, 52.343), crs="EPSG:4326")
    file, alignment = aligned(tmp_path / "a.tif")
    needed = pipeline.align._needed(header(file), GRID, Window(30, 30, 10, 10))
    assert needed is not None
    assert needed.height * needed.width < 300 * 250 / 10
    assert alignment.reach[0] < 0.9  # the raster is finer than the grid: kernels widen


@pytest.mark.parametrize("degrees", [10, 30, 45])
def test_a_turned_grid_of_the_same_resolution_is_not_blurred(tmp_path: Path, degrees: float) -> None:
    """Bilinear values of white noise, worked out by hand at the centres of the grid's pixels."""
    noise = np.random.default_rng(0).standard_normal((1, 100, 100)).astype(np.float32)
    write_raster(tmp_path / "a.tif", noise)
    turned = TRANSFORM * Affine.translation(50, 50) * Affine.rotation(degrees) * Affine.translation(-20, -20)
    found = read(tmp_path / "a.tif", GeoBox((40, 40), turned, CRS))[0]
    place = ~TRANSFORM * turned
    for y, x in ((3, 5), (20, 31), (38, 2)):
        column, row = (v - 0.5 for v in place * (x + 0.5, y + 0.5))
        top, left = int(np.floor(row)), int(np.floor(column))
        down, right = row - top, column - left
        corners = noise[0, top : top + 2, left : left + 2]
        assert found[y, x] == pytest.approx(np.array([1 - down, down]) @ corners @ np.array([1 - right, right]), abs=1e-4)


def test_a_grid_about_the_pole_is_not_smeared(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((1, 160, 1440)).astype(np.float32)
    write_raster(tmp_path / "a.tif", noise, transform=Affine(0.25, 0, -180, 0, -0.25, -50), crs="EPSG:4326")
    found = read(tmp_path / "a.tif", GeoBox((400, 400), Affine(10_000, 0, -2e6, 0, -10_000, 2e6), "EPSG:3031"))[0]
    assert np.nanstd(found[:, :50]) > 0.5, "as of noise between pixels, not of means over many"


def test_nan_that_a_float_raster_does_not_declare_is_no_data(tmp_path: Path) -> None:
    values = np.full((1, 240, 220), 5, np.float32)
    values[0, 40::9, ::9] = np.nan
    for name, nodata in (("a.tif", None), ("b.tif", -9999)):
        write_raster(tmp_path / name, values, transform=FINE, nodata=nodata)
        for resampling in ("average", "bilinear", "med"):
            found = read(tmp_path / name, resampling=resampling)
            # GDAL leaves out a pixel whose very centre lies on one without data, unless all that it covers count.
            fewest = 0.98 if resampling == "bilinear" else 1
            assert np.isfinite(found[0, 5:50, 5:50]).mean() >= fewest, (name, resampling)
            assert (found[np.isfinite(found)] == 5).all(), (name, resampling)
