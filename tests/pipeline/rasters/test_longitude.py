"""Rasters and grids at 180 degrees and at 0 to 360: every pixel equals gdalwarp's, or a direct look-up by longitude."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import reproject

import pipeline.rasters.resample
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import RasterFile
from pipeline.rasters.longitude import Extent, cycle, geographic_extents, may_overlap, needed_parts, overlapping_pairs
from pipeline.rasters.raster import header
from tests.support.aligned_rasters import read_to_grid
from tests.support.scenes import write_raster

RESOLUTION = 0.01
GRIDS = {
    "UTM 60": GeoBox((24, 90), Affine(700, 0, 803000, 0, -700, 8400), "EPSG:32660"),
    "UTM 1": GeoBox((24, 90), Affine(700, 0, 134000, 0, -700, 8400), "EPSG:32601"),
    "Mercator 150": GeoBox((24, 90), Affine(700, 0, 3308000, 0, -700, 8400), "EPSG:3832"),
    "180": GeoBox((24, 90), Affine(RESOLUTION, 0, 179.53, 0, -RESOLUTION, 0.12), "EPSG:4326"),
    "-180": GeoBox((24, 90), Affine(RESOLUTION, 0, -180.47, 0, -RESOLUTION, 0.12), "EPSG:4326"),
    "180, off": GeoBox((24, 90), Affine(RESOLUTION, 0, 179.533, 0, -RESOLUTION, 0.123), "EPSG:4326"),
    "Web Mercator": GeoBox((24, 90), Affine(1100, 0, 19987000, 0, -1100, 13200), "EPSG:3857"),
}
SOURCES = {
    "179": (179, 2),
    "-181": (-181, 2),
    "-180": (-180, 360),
    "0": (0, 360),
    "180.1": (180.1, 0.2),
    "-540": (-540, 360),
}


def geographic(path: Path, left: float, width: float, *, masked: bool) -> np.ndarray:
    """Write noise from a longitude over some degrees, at 0.3 to -0.3 degrees of latitude; NaN if every ninth is missing."""
    columns = round(width / RESOLUTION)
    values = np.random.default_rng(columns).integers(1, 30000, (1, 60, columns)).astype(np.int16)
    if masked:
        values[0, ::9, ::9] = -1
    write_raster(
        path,
        values,
        transform=Affine(RESOLUTION, 0, left, 0, -RESOLUTION, 0.3),
        crs="EPSG:4326",
        nodata=-1 if masked else None,
    )
    return np.where(values == -1, np.nan, values)


def looked_up(values: np.ndarray, transform: Affine, crs: str, grid: GeoBox, *, period: float) -> np.ndarray:
    """Nearest values by transforming the pixel centres with pyproj and comparing x modulo the period."""
    rows, columns = grid.shape
    x, y = grid.affine * np.array(np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5))
    x, y = pyproj.Transformer.from_crs(grid.crs.to_wkt(), crs, always_xy=True).transform(x, y)
    column = np.floor(((x - transform.c) % period) / transform.a + 1e-7).astype(int)
    row = np.floor((y - transform.f) / transform.e + 1e-7).astype(int)
    inside = (column < values.shape[2]) & (row >= 0) & (row < values.shape[1])
    return np.where(inside, values[:, np.where(inside, row, 0), np.where(inside, column, 0)], np.nan)


@pytest.mark.parametrize(("side", "masked"), [(16, True), (96, False)])
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_raster_at_any_longitudes_covers_the_grid_at_180_degrees(
    tmp_path: Path, name: str, grid: GeoBox, masked: bool, side: int
) -> None:
    left, width = SOURCES[name]
    values = geographic(tmp_path / "a.tif", left, width, masked=masked)
    wanted = looked_up(values, Affine(RESOLUTION, 0, left, 0, -RESOLUTION, 0.3), "EPSG:4326", grid, period=360)
    found = read_to_grid(tmp_path / "a.tif", grid, side=side)
    assert np.isfinite(wanted).mean() > (0.97 if width > 1 and not masked else 0.1)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("resampling", ["bilinear", "average"])
@pytest.mark.parametrize("name", ["179", "-181", "-180", "0"])
@pytest.mark.parametrize("grid", ["UTM 60", "Mercator 150", "180, off", "-180"])
def test_resampled_values_at_180_degrees_are_those_of_gdalwarp(
    tmp_path: Path, name: str, grid: str, resampling: str
) -> None:
    geographic(tmp_path / "a.tif", *SOURCES[name], masked=True)
    box = GRIDS[grid]
    wanted = np.full((1, *box.shape), np.nan, np.float32)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        for column in range(0, box.shape[1], 5):  # GDAL transforms up to 5 pixels of a row exactly
            part = np.full((1, box.shape[0], 5), np.nan, np.float32)
            reproject(
                rasterio.band(dataset, [1]),
                part,
                dst_crs=box.crs.to_wkt(),
                dst_transform=box.affine * Affine.translation(column, 0),
                dst_nodata=np.nan,
                resampling=Resampling[resampling],
                XSCALE="1",
                YSCALE="1",
            )
            wanted[:, :, column : column + 5] = part
    found = read_to_grid(tmp_path / "a.tif", box, side=32, resampling=resampling)
    assert np.isfinite(found).mean() > 0.7
    x, y = box.affine * (np.arange(box.shape[1]) + 0.5, np.full(box.shape[1], box.shape[0] / 2))
    longitude = pyproj.Transformer.from_crs(box.crs.to_wkt(), "EPSG:4326", always_xy=True).transform(x, y)[0]
    seam = (np.abs(np.abs(longitude) - 180) < RESOLUTION) & (name == "-180")  # gdalwarp leaves a gap there
    np.testing.assert_allclose(found[..., ~seam], wanted[..., ~seam], rtol=2e-5)
    assert not seam.any() or np.isfinite(found[..., seam]).mean() > 0.7


@pytest.mark.parametrize("left", [19990000.0, -20085016.68557849])
def test_mercator_raster_beyond_180_degrees_covers_a_utm_grid(tmp_path: Path, left: float) -> None:
    values = np.random.default_rng(0).integers(1, 30000, (1, 60, 90)).astype(np.int16)
    transform = Affine(1000, 0, left, 0, -1000, 30000)
    write_raster(tmp_path / "a.tif", values, transform=transform, crs="EPSG:3857")
    grid = GRIDS["UTM 60"]
    wanted = looked_up(values, transform, "EPSG:3857", grid, period=2 * np.pi * 6378137)
    found = read_to_grid(tmp_path / "a.tif", grid, side=16)
    assert np.isfinite(wanted).mean() > 0.9
    assert np.isclose(found, wanted, equal_nan=True).mean() > 0.99


def test_grid_at_greenwich_is_covered_by_a_raster_of_0_to_360_degrees(tmp_path: Path) -> None:
    values = geographic(tmp_path / "a.tif", 0, 360, masked=False)
    grid = GeoBox((24, 90), Affine(RESOLUTION, 0, -0.45, 0, -RESOLUTION, 0.12), "EPSG:4326")
    np.testing.assert_array_equal(
        read_to_grid(tmp_path / "a.tif", grid, side=16), np.roll(values, 45, axis=2)[:, 18:42, :90]
    )
    coarse = Affine(4 * RESOLUTION, 0, 0, 0, -4 * RESOLUTION, 0.24)
    write_raster(
        tmp_path / "b.tif", np.arange(1, 9001, dtype=np.int16).reshape(1, 1, 9000), transform=coarse, crs="EPSG:4326"
    )
    grid = GeoBox((2, 8), Affine(RESOLUTION, 0, -0.04, 0, -RESOLUTION, 0.24), "EPSG:4326")
    np.testing.assert_array_equal(read_to_grid(tmp_path / "b.tif", grid, side=3), [[[9000] * 4 + [1] * 4] * 2])


def test_masked_global_raster_is_read_only_near_180_degrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geographic(tmp_path / "a.tif", -180, 360, masked=True)
    file = RasterFile(str(tmp_path / "a.tif"))
    needed = needed_parts(header(file).grid, GRIDS["UTM 60"], Window(0, 0, 24, 90))
    assert [part.window.x > 35900 or part.window.x == 0 for part in needed] == [True, True]
    assert sum(part.window.width for part in needed) < 120
    monkeypatch.setattr(pipeline.rasters.resample, "MAX_PIXELS_IN_MEMORY", 500)
    np.testing.assert_array_equal(
        read_to_grid(tmp_path / "a.tif", GRIDS["UTM 60"], side=96),
        read_to_grid(tmp_path / "a.tif", GRIDS["UTM 60"], side=7),
    )


def test_raster_elsewhere_is_still_refused(tmp_path: Path) -> None:
    geographic(tmp_path / "a.tif", 170, 2, masked=False)
    for grid in GRIDS.values():
        with pytest.raises(InputError, match="does not overlap the reference grid"):
            read_to_grid(tmp_path / "a.tif", grid, side=96)


@pytest.mark.parametrize(
    ("crs", "low", "period"),
    [
        ("EPSG:4326", -180, 360),
        ("EPSG:4807", -200, 400),  # in grads, from Paris
        ("EPSG:3857", -np.pi * 6378137, 2 * np.pi * 6378137),
        ("EPSG:6933", -17367530.445161372, 2 * 17367530.445161372),
        ("EPSG:3832", -np.pi * 6378137, 2 * np.pi * 6378137),
        ("EPSG:32660", None, None),
        ("EPSG:3413", None, None),
    ],
)
def test_x_axis_of_cylindrical_crss_wraps(crs: str, low: float | None, period: float | None) -> None:
    found = cycle(pyproj.CRS(crs).to_wkt())
    assert (found is None) == (low is None)
    if found is not None:
        assert (found.low, found.period) == pytest.approx((low, period))


@pytest.mark.parametrize("left", [-180, 0, -180.125])
@pytest.mark.parametrize("side", [30, 100])
def test_polar_grid_is_covered_by_global_rasters_of_any_longitudes(tmp_path: Path, left: float, side: int) -> None:
    longitude = left + 0.25 + 0.5 * np.arange(720)
    values = np.broadcast_to(1000 * np.cos(np.radians(longitude)), (1, 100, 720)).astype(np.float32)
    write_raster(tmp_path / "a.tif", values, transform=Affine(0.5, 0, left, 0, -0.5, 90), crs="EPSG:4326", nodata=-9999)
    grid = GeoBox((100, 100), Affine(40000, 0, -2e6, 0, -40000, 2e6), "EPSG:3413")
    x, y = grid.affine * np.array(np.meshgrid(np.arange(100) + 0.5, np.arange(100) + 0.5))
    longitude, latitude = pyproj.Transformer.from_crs("EPSG:3413", "EPSG:4326", always_xy=True).transform(x, y)
    found = read_to_grid(tmp_path / "a.tif", grid, side=side, resampling="bilinear")[0]
    far = latitude < 86
    np.testing.assert_allclose(found[far], 1000 * np.cos(np.radians(longitude[far])), atol=1)
    assert np.isfinite(found).all()


def test_grids_may_overlap_at_any_turn_and_where_their_place_is_unknown() -> None:
    site = GeoBox((24, 90), Affine(10, 0, 0, 0, -10, 0), 'LOCAL_CS["site grid",UNIT["metre",1]]')
    europe = GeoBox((24, 90), Affine(RESOLUTION, 0, 10, 0, -RESOLUTION, 0.12), "EPSG:4326")
    places = {name: geographic_extents(grid) for name, grid in (GRIDS | {"site": site, "Europe": europe}).items()}
    for one, other in combinations(places, 2):
        wanted = "Europe" not in (one, other) or "site" in (one, other)
        assert may_overlap(places[one], places[other]) == may_overlap(places[other], places[one]) == wanted


@given(st.lists(st.one_of(st.none(), st.tuples(*[st.integers(-40, 40)] * 2, *[st.integers(1, 36)] * 2)), max_size=12))
def test_pairs_that_may_overlap_are_found_at_any_turn(rectangles: list[tuple[int, int, int, int] | None]) -> None:
    places = [
        None if r is None else [Extent(10.0 * r[0], float(r[1]), 10.0 * (r[0] + r[2]), float(r[1] + r[3]))]
        for r in rectangles
    ]
    pairs = [pair for pair in combinations(range(len(places)), 2) if may_overlap(places[pair[0]], places[pair[1]])]
    assert overlapping_pairs(places) == pairs
