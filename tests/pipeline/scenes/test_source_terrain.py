"""Slope as a derived band of a source: what it is computed from at edges, gaps, masks, tiles, periods, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import Resampling, reproject

from mibf.errors import InputError
from pipeline.grid import Window, windows
from pipeline.parallel.executor import ThreadExecutor
from pipeline.rasters.header import RasterFile
from pipeline.scenes.coverage import bands_without_data
from pipeline.scenes.source import AlignedSource, Source, open_source
from pipeline.stac.composite import Composite
from pipeline.stac.masks import Mask
from pipeline.stac.periods import calendar_periods
from pipeline.store.source_overlap import footprints
from tests.support.scenes import write_raster

CRS = "EPSG:32612"
ROWS, COLUMNS = 44, 52
#: 10 m pixels at the central meridian of a UTM zone, where 9.996 m of the projection are 10 m on the ground.
PLACE = Affine(10, 0, 499_740, 0, -10, 4_000_220)
METERS = 10 / 0.9996
#: The grid starts and ends three pixels within the raster.
EDGE = 3
GRID = GeoBox((ROWS - 2 * EDGE, COLUMNS - 2 * EDGE), PLACE * Affine.translation(EDGE, EDGE), CRS)
WHOLE = Window(0, 0, *GRID.shape)
INNER = np.s_[EDGE : ROWS - EDGE, EDGE : COLUMNS - EDGE]
HEIGHTS = (700 + np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).cumsum(axis=0).cumsum(axis=1)).astype(np.float32)
SLOPE = (("slope", "slope(height)"),)


def horn(heights: np.ndarray, meters: float = METERS) -> np.ndarray:
    """Horn's slope in degrees (y, x); NaN at the edges and beside NaN."""
    wide = np.pad(heights.astype(np.float64), 1, constant_values=np.nan)
    rows, columns = heights.shape
    at = {(y, x): wide[1 + y : 1 + y + rows, 1 + x : 1 + x + columns] for y in (-1, 0, 1) for x in (-1, 0, 1)}
    across, down = (
        sum((1 if y and x else 2) * (x, y)[axis] * at[y, x] for y, x in at if (x, y)[axis]) / (8 * meters) for axis in (0, 1)
    )
    return np.where(np.isnan(heights), np.nan, np.degrees(np.arctan(np.hypot(across, down))))


def dem(
    folder: Path, heights: np.ndarray = HEIGHTS, *, name: str = "dem.tif", place: Affine = PLACE, nodata: Any = None
) -> RasterFile:
    return RasterFile(str(write_raster(folder / name, heights[None], transform=place, crs=CRS, nodata=nodata)))


def opened(*files: RasterFile, grid: GeoBox = GRID, **declared: Any) -> AlignedSource:
    named = {"band_names": ("height",), "derive": SLOPE} | declared
    return open_source(Source("dem", (files,), **named), grid)


def test_pixels_at_the_edge_of_the_grid_see_the_raster_beyond(tmp_path: Path) -> None:
    source = opened(dem(tmp_path))
    assert (source.bands, source.declared.kept, source.how) == (2, ("height", "slope"), ["exact"])
    values, valid = source.read(WHOLE)
    assert valid.all()
    assert (values[0] == HEIGHTS[INNER]).all()
    assert values[1] == pytest.approx(horn(HEIGHTS)[INNER], abs=1e-4)
    assert values[1].std() > 1


def test_pixels_at_the_edge_of_the_raster_have_the_slope_of_the_neighbors_there_are(tmp_path: Path) -> None:
    grid = GeoBox((ROWS, COLUMNS), PLACE, CRS)
    values, valid = opened(dem(tmp_path), grid=grid).read(Window(0, 0, ROWS, COLUMNS))
    assert valid.all()
    wanted = horn(HEIGHTS)
    assert np.isnan(wanted).sum() == 2 * (ROWS + COLUMNS) - 4
    assert values[1, 1:-1, 1:-1] == pytest.approx(wanted[1:-1, 1:-1], abs=1e-4)
    # In a corner the plane through three neighbors, below (1, 0), beside (0, 1) and between, with weights 2, 2 and 1.
    down, across, both = (float(HEIGHTS[at]) - float(HEIGHTS[0, 0]) for at in ((1, 0), (0, 1), (1, 1)))
    rises = np.linalg.solve([[3.0, 1.0], [1.0, 3.0]], [2 * across + both, 2 * down + both])
    assert values[1, 0, 0] == pytest.approx(np.degrees(np.arctan(np.hypot(*rises) / METERS)), abs=1e-4)


@pytest.mark.parametrize("side", [5, 7, 38])
def test_any_window_is_part_of_the_whole(side: int, tmp_path: Path) -> None:
    heights = HEIGHTS.copy()
    heights[np.random.default_rng(1).random(heights.shape) < 0.3] = -9999
    source = opened(
        dem(tmp_path, heights, nodata=-9999),
        derive=(*SLOPE, ("north", "northness(height)"), ("steep", "minimum(slope(height), 30) / 30")),
    )
    values, valid = source.read(WHOLE)
    assert 0.5 < valid.mean() < 0.75
    for window in windows((GRID.shape[0], GRID.shape[1]), side):
        part, there = source.read(window)
        assert part.tobytes() == values[:, *window.slices].tobytes()
        assert (there == valid[window.slices]).all()


def test_a_gap_costs_its_own_pixels_only(tmp_path: Path) -> None:
    heights = HEIGHTS.copy()
    heights[10:14, 20:25] = -9999
    values, valid = opened(dem(tmp_path, heights, nodata=-9999)).read(WHOLE)
    assert (valid == (heights[INNER] != -9999)).all()
    wanted = horn(np.where(heights == -9999, np.nan, heights))[INNER]
    complete = np.isfinite(wanted)
    assert values[1][complete] == pytest.approx(wanted[complete], abs=1e-4)
    assert not values[:, ~valid].any()
    assert values[1].max() < 60, "no cliff at the gap"


def test_what_the_mask_excludes_is_no_neighbor(tmp_path: Path) -> None:
    heights, quality = HEIGHTS.copy(), np.zeros((1, ROWS, COLUMNS), np.uint8)
    heights[10:14, 20:25] += 5000
    quality[0, 10:14, 20:25] = 1
    mask = Mask(RasterFile(str(write_raster(tmp_path / "q.tif", quality, transform=PLACE, crs=CRS))), invalid=(1,))
    values, valid = opened(dem(tmp_path, heights), mask=mask).read(WHOLE)
    assert (valid == (quality[0][INNER] == 0)).all()
    assert values[1].max() < 60


def test_tiles_have_no_seam(tmp_path: Path) -> None:
    """Two tiles that share no pixel, and one whose only pixels are beyond the grid's edge."""
    cut = 24
    west = dem(tmp_path, HEIGHTS[EDGE:, EDGE:cut], name="w.tif", place=PLACE * Affine.translation(EDGE, EDGE))
    east = dem(tmp_path, HEIGHTS[EDGE:, cut:], name="e.tif", place=PLACE * Affine.translation(cut, EDGE))
    north = dem(tmp_path, HEIGHTS[:EDGE], name="n.tif")
    values, valid = opened(west, east, north).read(WHOLE)
    assert valid.all()
    inner = horn(HEIGHTS)[INNER]
    assert values[1][:, 1:] == pytest.approx(inner[:, 1:], abs=1e-4)  # the first column has no neighbors to the west


def test_coarser_heights_are_interpolated_before(tmp_path: Path) -> None:
    """A 30 m raster of a plane, whose pixels nest in the grid's, has the plane's slope; repeated it would have steps."""
    y, x = np.mgrid[:20, :24]
    plane = (6.0 * x - 3.0 * y + 100).astype(np.float32)  # a rise of 0.2 and 0.1 m a meter
    coarse = dem(tmp_path, plane, place=PLACE * Affine.scale(3))
    grid = GeoBox((30, 36), PLACE * Affine.translation(9, 9), CRS)
    source = opened(coarse, grid=grid)
    assert source.how == ["resampled, bilinear"]
    values, valid = source.read(Window(0, 0, 30, 36))
    assert valid.all()
    assert values[1] == pytest.approx(np.degrees(np.arctan(np.hypot(0.2, 0.1) * 0.9996)), abs=2e-3)
    plain = opened(coarse, grid=grid, derive=())
    assert plain.how == ["exact, each pixel repeated 3 x 3 times"], "as before, without slope"


@pytest.mark.parametrize(
    ("resampling", "pixel"), [("nearest", 30), ("average", 30), ("mode", 30), ("med", 30), ("nearest", 6)]
)
def test_heights_with_steps_are_refused(resampling: str, pixel: float, tmp_path: Path) -> None:
    file = dem(tmp_path, np.ones((90, 90), np.float32), place=PLACE * Affine.scale(pixel / 10))
    with pytest.raises(InputError, match=r"source 'dem': .*dem\.tif is .*, which repeats pixels .* `resampling: bilinear`"):
        opened(file, resampling=resampling)


@pytest.mark.parametrize("resampling", ["average", "bilinear", "cubic", "med"])
def test_finer_heights_are_aggregated_before(resampling: str, tmp_path: Path) -> None:
    x = np.arange(260) * np.ones((220, 1))
    file = dem(tmp_path, (0.4 * x).astype(np.float32), place=PLACE * Affine.scale(0.2))
    values, valid = opened(file, resampling=resampling).read(WHOLE)
    assert valid.all()
    assert values[1] == pytest.approx(np.degrees(np.arctan(0.2 * 0.9996)), abs=1e-2)


def test_heights_in_degrees_are_resampled_like_rasterio_does_and_windows_agree(tmp_path: Path) -> None:
    """One second of arc, as the Copernicus DEM has."""
    drawn = np.random.default_rng(2).normal(scale=8, size=(60, 60)).cumsum(axis=0).astype(np.float32) + 900
    place = Affine(1 / 3600, 0, -111.008, 0, -1 / 3600, 36.152)
    path = write_raster(tmp_path / "dem.tif", drawn[None], transform=place, crs="EPSG:4326")
    source = opened(RasterFile(str(path)), resampling="bilinear")
    values, valid = source.read(WHOLE)
    assert valid.all()
    wide = GRID.pad(1)
    around = np.zeros(wide.shape, np.float32)
    with rasterio.open(path) as dataset:
        reproject(
            rasterio.band(dataset, 1), around, dst_transform=wide.affine, dst_crs=CRS, resampling=Resampling.bilinear,
            tolerance=0,
        )  # fmt: skip  # values in rows that belong together
    assert values[0] == pytest.approx(around[1:-1, 1:-1], abs=1e-2)
    assert values[1] == pytest.approx(horn(around)[1:-1, 1:-1], abs=0.02)
    for window in windows((GRID.shape[0], GRID.shape[1]), 16):
        part, _ = source.read(window)
        assert part == pytest.approx(values[:, *window.slices], abs=2e-3)


def test_a_finer_source_has_the_slope_of_its_own_pixels(tmp_path: Path) -> None:
    coarse = GeoBox((GRID.shape[0] // 2, GRID.shape[1] // 2), GRID.affine * Affine.scale(2), CRS)
    values, valid = opened(dem(tmp_path), grid=coarse, scale=2).read(Window(0, 0, *coarse.shape))
    assert valid.all()
    assert values[1] == pytest.approx(horn(HEIGHTS)[INNER], abs=1e-4)


def test_each_period_has_its_slope(tmp_path: Path) -> None:
    """Surface models of two dates in two months, with gaps that are not interpolated into slopes."""
    dates = ("2024-05-10", "2024-06-10")
    july = HEIGHTS[::-1].copy()
    july[10:14, 20:25] = -9999
    files = dem(tmp_path, nodata=-9999), dem(tmp_path, july, name="b.tif", nodata=-9999)
    periods = calendar_periods("month", dates, where="items")
    source = opened(*files, dates=dates, periods=periods, composite=Composite("median"), gaps="interpolate")
    assert source.declared.kept == ("height@2024-05", "slope@2024-05", "height@2024-06", "slope@2024-06")
    values, valid, counts = source.observe(WHOLE)
    assert valid.all()
    assert counts is not None
    assert (counts[1] == (july[INNER] != -9999)).all()
    assert values[1] == pytest.approx(horn(HEIGHTS)[INNER], abs=1e-4)
    wanted = horn(np.where(july == -9999, np.nan, july))[INNER]
    complete = np.isfinite(wanted)
    assert values[3][complete] == pytest.approx(wanted[complete], abs=1e-4)
    gap = july[INNER] == -9999
    assert (values[2:, gap] == values[:2, gap]).all(), "the other month's height and slope"


def test_masked_items_are_read_beyond_the_grid(tmp_path: Path) -> None:
    clouds = np.zeros((1, ROWS, COLUMNS), np.uint8)
    clouds[0, :, EDGE - 2] = 9  # one pixel wide, two beyond the grid, and extended by one
    cloud = Mask(
        RasterFile(str(write_raster(tmp_path / "c.tif", clouds, transform=PLACE, crs=CRS)), nodata=np.nan),
        invalid=(9,),
        dilate=1,
    )
    values, valid = opened(dem(tmp_path), masks=(cloud,), dates=("2024-05-10",)).read(WHOLE)
    assert valid.all()
    wanted = horn(HEIGHTS)[INNER]
    assert values[1][:, 1:] == pytest.approx(wanted[:, 1:], abs=1e-4)
    assert np.abs(values[1][:, 0] - wanted[:, 0]).max() > 0.1, "without its neighbors to the west"


def test_slope_of_a_grid_without_crs_is_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "dem.tif", HEIGHTS[None], crs=None)
    with pytest.raises(InputError, match=r"but the reference grid has no CRS; assign its CRS"):
        opened(RasterFile(str(path)), grid=GeoBox((ROWS, COLUMNS), PLACE, None))


def test_a_band_without_data_is_named(tmp_path: Path) -> None:
    both = np.stack([HEIGHTS, np.full_like(HEIGHTS, -9999)])
    path = write_raster(tmp_path / "dem.tif", both, transform=PLACE, crs=CRS, nodata=-9999)
    source = opened(RasterFile(str(path)), band_names=("height", "cover"))
    assert bands_without_data(ThreadExecutor(1), source, (GRID.shape[0], GRID.shape[1])) == ["2"]


@pytest.mark.parametrize(("scale", "reach"), [(1, 2), (2, 1)])
def test_pixels_whose_neighbors_are_the_same_share_file_pixels(scale: int, reach: int, tmp_path: Path) -> None:
    """Of pixels i and i + 2 at scale 1, i + 1 is a neighbor of both."""
    grid = GeoBox((GRID.shape[0] // scale, GRID.shape[1] // scale), GRID.affine * Affine.scale(scale), CRS)
    source = opened(dem(tmp_path), grid=grid, scale=scale)
    (found,) = footprints(source, grid)
    assert found.reach == reach
    (first, last), _ = found.spans(Window(0, 0, *grid.shape))
    for distance in range(1, 4):
        shared = (last[distance:] >= first[:-distance]) & (first[distance:] <= last[:-distance])
        assert shared.all() if distance <= reach else not shared.any()
    plain = replace(source.declared, derive=())
    assert footprints(open_source(plain, grid), grid) == ()
