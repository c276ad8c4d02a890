"""Alignment: rasters nested in the grid are copied pixel by pixel; all others are resampled exactly as by GDAL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

import pipeline.rasters.resample
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import RasterFile
from pipeline.rasters.longitude import needed_parts
from pipeline.rasters.raster import header
from pipeline.rasters.resample import Alignment, align
from tests.support.aligned_rasters import read_to_grid
from tests.support.scenes import CRS, TRANSFORM, write_raster

GRID = GeoBox((60, 50), TRANSFORM, CRS)


def aligned(path: Path, grid: GeoBox = GRID, *, resampling: str | None = None) -> tuple[RasterFile, Alignment]:
    file = RasterFile(str(path))
    return file, align(file, header(file), grid, resampling=resampling)


def read(path: Path, grid: GeoBox = GRID, *, side: int = 64, resampling: str | None = None) -> np.ndarray:
    """Read the raster on the full grid window by window; NaN where there is no data."""
    return read_to_grid(path, grid, side=side, resampling=resampling)


def random_raster(path: Path, rows: int, columns: int, **where: Any) -> np.ndarray:
    values = np.random.default_rng(rows + columns).integers(1, 60000, (2, rows, columns)).astype(np.uint16)
    write_raster(path, values, **where)
    return values


@given(st.integers(-70, 70), st.integers(-60, 60), st.integers(5, 64))
@settings(max_examples=40)
def test_raster_shifted_by_integer_pixels_is_cut_exactly(
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
def test_coarser_raster_nested_in_the_grid_is_repeated(
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


def test_requested_resampling_is_used_for_a_nested_coarser_raster(tmp_path: Path) -> None:
    values = random_raster(tmp_path / "a.tif", 30, 25, transform=TRANSFORM * Affine.scale(2)).astype(float)
    assert aligned(tmp_path / "a.tif", resampling="bilinear")[1].kind == "resampled"
    found = read(tmp_path / "a.tif", resampling="bilinear")
    # Fine centres are a quarter of a coarse pixel off the coarse centre: weights 3/4 and 1/4 along each axis.
    rows = 0.75 * values[:, 1:] + 0.25 * values[:, :-1]
    np.testing.assert_allclose(found[:, 2::2, 2::2], 0.75 * rows[..., 1:] + 0.25 * rows[..., :-1], rtol=1e-5)


@pytest.mark.parametrize("offset", [0.2, 0.5])
def test_raster_with_subpixel_offset_is_resampled(tmp_path: Path, offset: float) -> None:
    random_raster(tmp_path / "a.tif", 60, 50, transform=TRANSFORM * Affine.translation(offset, 0))
    assert aligned(tmp_path / "a.tif")[1].kind == "resampled"
    random_raster(tmp_path / "b.tif", 30, 25, transform=TRANSFORM * Affine.scale(2) * Affine.translation(offset, 0))
    assert aligned(tmp_path / "b.tif")[1].kind == "resampled"


ROTATED = TRANSFORM * Affine.translation(25, 30) * Affine.rotation(20) * Affine.translation(-60, -60)
DEGREES = Affine(0.0004, 0, 13.537, 0, -0.00025, 52.343)
FINE = TRANSFORM * Affine.translation(-1.3, -2.7) * Affine.scale(0.3)


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "average", "lanczos", "mode"])
@pytest.mark.parametrize(
    ("transform", "crs", "shape"),
    [(DEGREES, "EPSG:4326", (30, 25)), (ROTATED, CRS, (120, 120)), (FINE, CRS, (240, 220))],
    ids=["another CRS", "rotated", "finer"],
)
def test_resampled_pixels_do_not_depend_on_the_window(
    tmp_path: Path, transform: Affine, crs: str, shape: tuple[int, int], resampling: str
) -> None:
    random_raster(tmp_path / "a.tif", *shape, transform=transform, crs=crs, nodata=0)
    whole = read(tmp_path / "a.tif", side=60, resampling=resampling)
    assert np.isfinite(whole).mean() > 0.25
    for side in (7, 32):  # up to the last bit of float32: positions in a rotated grid accumulate rounding errors
        np.testing.assert_allclose(read(tmp_path / "a.tif", side=side, resampling=resampling), whole, rtol=2e-7)


def test_windowed_resampling_equals_gdal_warp_of_the_full_raster(tmp_path: Path) -> None:
    random_raster(tmp_path / "a.tif", 30, 25, transform=DEGREES, crs="EPSG:4326", nodata=0)
    with (
        rasterio.open(tmp_path / "a.tif") as dataset,
        WarpedVRT(
            dataset,
            crs=CRS,
            transform=TRANSFORM,
            height=60,
            width=50,
            resampling=Resampling.bilinear,
            nodata=np.nan,
            dtype="float32",
            tolerance=1e-6,
        ) as view,
    ):
        wanted = view.read()
    np.testing.assert_array_equal(read(tmp_path / "a.tif", side=16), wanted)


def test_much_finer_raster_read_in_pieces_gives_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_raster(tmp_path / "a.tif", 240, 220, transform=FINE)
    whole = read(tmp_path / "a.tif", resampling="average")
    monkeypatch.setattr(pipeline.rasters.resample, "MAX_PIXELS_IN_MEMORY", 5000)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", resampling="average"), whole)


def test_images_without_crs_are_matched_by_pixel_position(tmp_path: Path) -> None:
    image = GeoBox((60, 50), Affine.identity(), None)
    values = random_raster(tmp_path / "a.tif", 60, 50, crs=None)  # its transform belongs to another image
    np.testing.assert_array_equal(read(tmp_path / "a.tif", image), values)
    coarse = random_raster(tmp_path / "b.tif", 15, 10, crs=None)
    with pytest.raises(InputError, match="15 x 10 pixels without a CRS"):
        read(tmp_path / "b.tif", image)
    fourfold = GeoBox((60, 40), Affine.identity(), None)
    np.testing.assert_array_equal(read(tmp_path / "b.tif", fourfold), coarse.repeat(4, axis=1).repeat(4, axis=2))
    random_raster(tmp_path / "c.tif", 120, 100, crs=None)
    with pytest.raises(InputError, match="2 times finer: set `scale: 2` for the source"):
        read(tmp_path / "c.tif", image)


def test_window_in_another_crs_reads_only_the_needed_pixels(tmp_path: Path) -> None:
    """A corner of the grid needs only a small part of the raster."""
    random_raster(tmp_path / "a.tif", 300, 250, transform=Affine(4e-5, 0, 13.537, 0, -2.5e-5, 52.343), crs="EPSG:4326")
    file, alignment = aligned(tmp_path / "a.tif")
    (part,) = needed_parts(header(file).grid, GRID, Window(30, 30, 10, 10))
    needed = part.window
    assert needed.height * needed.width < 300 * 250 / 10
    assert alignment.reach[0] < 0.9  # the raster is finer than the grid, so kernels are wider in raster pixels


@pytest.mark.parametrize("degrees", [10, 30, 45])
def test_rotated_grid_of_equal_resolution_is_interpolated_bilinearly(tmp_path: Path, degrees: float) -> None:
    """White noise must equal bilinear values computed directly at the pixel centres of the grid."""
    noise = np.random.default_rng(0).standard_normal((1, 100, 100)).astype(np.float32)
    write_raster(tmp_path / "a.tif", noise)
    rotated = TRANSFORM * Affine.translation(50, 50) * Affine.rotation(degrees) * Affine.translation(-20, -20)
    found = read(tmp_path / "a.tif", GeoBox((40, 40), rotated, CRS))[0]
    place = ~TRANSFORM * rotated
    for y, x in ((3, 5), (20, 31), (38, 2)):
        column, row = (v - 0.5 for v in place * (x + 0.5, y + 0.5))
        top, left = int(np.floor(row)), int(np.floor(column))
        down, right = row - top, column - left
        corners = noise[0, top : top + 2, left : left + 2]
        assert found[y, x] == pytest.approx(np.array([1 - down, down]) @ corners @ np.array([1 - right, right]), abs=1e-4)


def test_polar_grid_is_not_blurred(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((1, 160, 1440)).astype(np.float32)
    write_raster(tmp_path / "a.tif", noise, transform=Affine(0.25, 0, -180, 0, -0.25, -50), crs="EPSG:4326")
    found = read(tmp_path / "a.tif", GeoBox((400, 400), Affine(10_000, 0, -2e6, 0, -10_000, 2e6), "EPSG:3031"))[0]
    assert np.nanstd(found[:, :50]) > 0.5, "the deviation is that of single noise pixels, not of means over many"


def test_undeclared_nan_in_a_float_raster_is_invalid(tmp_path: Path) -> None:
    values = np.full((1, 240, 220), 5, np.float32)
    values[0, 40::9, ::9] = np.nan
    for name, nodata in (("a.tif", None), ("b.tif", -9999)):
        write_raster(tmp_path / name, values, transform=FINE, nodata=nodata)
        for resampling in ("average", "bilinear", "med"):
            found = read(tmp_path / name, resampling=resampling)
            # GDAL's bilinear drops a pixel whose centre is on a pixel without data; average and med use all covered pixels.
            fewest = 0.98 if resampling == "bilinear" else 1
            assert np.isfinite(found[0, 5:50, 5:50]).mean() >= fewest, (name, resampling)
            assert (found[np.isfinite(found)] == 5).all(), (name, resampling)


@pytest.mark.parametrize(("right", "down"), [(20, 0), (0, 20), (0.7, 0)])
def test_images_without_crs_whose_transforms_contradict_are_refused(tmp_path: Path, right: float, down: float) -> None:
    first, second = tmp_path / "first.tif", tmp_path / "second.tif"
    random_raster(first, 60, 50, crs=None)
    random_raster(second, 60, 50, crs=None, transform=TRANSFORM * Affine.translation(right, down))
    like, file = RasterFile(str(first)), RasterFile(str(second))
    with pytest.raises(InputError, match=r"second\.tif: has no CRS.*first\.tif.*pixels apart: .*4000") as caught:
        align(file, header(file), header(like).grid, resampling=None, like=like)
    assert f"{max(right, down):g} pixels apart" in str(caught.value)


def test_images_without_crs_whose_transforms_agree_are_matched(tmp_path: Path) -> None:
    image = GeoBox((60, 50), TRANSFORM, None)
    values = random_raster(tmp_path / "a.tif", 60, 50, crs=None, transform=TRANSFORM * Affine.translation(0.01, 0))
    np.testing.assert_array_equal(read(tmp_path / "a.tif", image), values)
    coarse = random_raster(tmp_path / "b.tif", 15, 10, crs=None, transform=TRANSFORM * Affine.scale(4))
    fourfold = GeoBox((60, 40), TRANSFORM, None)
    np.testing.assert_array_equal(read(tmp_path / "b.tif", fourfold), coarse.repeat(4, axis=1).repeat(4, axis=2))
    random_raster(tmp_path / "d.tif", 15, 10, crs=None, transform=Affine.translation(4900, 3800))
    cut = GeoBox(
        (60, 40), Affine.translation(19602, 15199), None
    )  # both numbered in pixels of the images they were cut from
    assert np.isfinite(read(tmp_path / "d.tif", cut)).all()
    random_raster(tmp_path / "c.tif", 60, 50, crs=None, transform=TRANSFORM * Affine.scale(1, -1))
    with pytest.raises(InputError, match="pixels apart"):
        read(tmp_path / "c.tif", image)


SITE = 'LOCAL_CS["site grid",UNIT["metre",1]]'


def test_engineering_crs_is_aligned_with_itself_alone(tmp_path: Path) -> None:
    values = random_raster(tmp_path / "a.tif", 60, 50, crs=SITE)
    # Another spelling of the same CRS, as another format would state it.
    named = 'ENGCRS["site grid",EDATUM["pit"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
    for crs in (SITE, named):
        np.testing.assert_array_equal(read(tmp_path / "a.tif", GeoBox((60, 50), TRANSFORM, crs)), values)
        shifted = GeoBox((40, 40), TRANSFORM * Affine.translation(5.5, 5), crs)
        means = (values[:, 5:45, 5:45].astype(float) + values[:, 5:45, 6:46]) / 2
        np.testing.assert_allclose(read(tmp_path / "a.tif", shifted), means, rtol=1e-6)
    with pytest.raises(InputError, match=r"a\.tif: has an engineering CRS, 'site grid', but .* is WGS 84 / UTM zone 33N"):
        read(tmp_path / "a.tif", GRID)
    random_raster(tmp_path / "b.tif", 60, 50)
    with pytest.raises(
        InputError, match=r"b\.tif: has the CRS WGS 84 / UTM zone 33N, but .* is an engineering CRS, 'site grid'"
    ):
        read(tmp_path / "b.tif", GeoBox((60, 50), TRANSFORM, SITE))


def test_envi_raster_with_arbitrary_map_info_is_aligned_with_itself_alone(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (1, 60, 50)).astype(np.int16)
    with rasterio.open(tmp_path / "a.img", "w", driver="ENVI", count=1, height=60, width=50, dtype="int16") as dataset:
        dataset.write(values)
    with (tmp_path / "a.hdr").open("a") as file:
        file.write("map info = {Arbitrary, 1, 1, 400000, 5800000, 10, 10, 0, units=Meters}\n")
    grid = header(RasterFile(str(tmp_path / "a.img"))).grid
    assert grid.crs is not None
    np.testing.assert_array_equal(read(tmp_path / "a.img", grid), values)
    with pytest.raises(InputError, match=r"a\.img: has an engineering CRS, 'Arbitrary'"):
        read(tmp_path / "a.img", GRID)


def test_raster_with_rpcs_only_is_named_as_such(tmp_path: Path) -> None:
    random_raster(tmp_path / "a.tif", 60, 50, crs=None, transform=Affine.identity())
    coefficients = [1.0] + [0.0] * 19
    with rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.rpcs = rasterio.rpc.RPC(
            height_off=0, height_scale=1, lat_off=52, lat_scale=1, line_den_coeff=coefficients, line_num_coeff=coefficients,
            line_off=0, line_scale=1, long_off=13, long_scale=1, samp_den_coeff=coefficients,
            samp_num_coeff=coefficients, samp_off=0, samp_scale=1,
        )  # fmt: skip  # all of them are required
    with pytest.raises(
        InputError, match=r"a\.tif: is georeferenced by rational polynomial coefficients \(RPCs\) only.*gdalwarp -rpc"
    ):
        read(tmp_path / "a.tif")
    image = GeoBox((60, 50), Affine.identity(), None)
    assert np.isfinite(read(tmp_path / "a.tif", image)).all(), "images of one sensor are stacked pixel by pixel"


@pytest.mark.parametrize(("crs", "unit"), [("EPSG:4326", 9e-5), ("EPSG:32632", 10.0), ("EPSG:3857", 16.0)])
@pytest.mark.parametrize("resampling", ["bilinear", "average", "lanczos"])
def test_resampled_values_of_random_grids_hardly_depend_on_the_window(
    tmp_path: Path, crs: str, unit: float, resampling: str
) -> None:
    """The promise of docs/configuration.md: values agree within 1 in 20,000 of the range."""
    rng = np.random.default_rng(round(unit) + len(resampling))
    x, y = pyproj.Transformer.from_crs(CRS, crs, always_xy=True).transform(*(TRANSFORM * (25, 30)))
    for _ in range(2):
        turned = Affine.rotation(rng.uniform(0, 90)) * Affine.scale(unit * rng.uniform(0.4, 2.5))
        placed = Affine.translation(x, y) * turned * Affine.translation(-45, -45)
        values = rng.integers(1, 2001, (1, 90, 90)).astype(np.float32)
        write_raster(tmp_path / "a.tif", values, transform=placed, crs=crs)
        whole = read(tmp_path / "a.tif", side=60, resampling=resampling)
        for side in (14, 32):
            np.testing.assert_allclose(read(tmp_path / "a.tif", side=side, resampling=resampling), whole, atol=0.1)
