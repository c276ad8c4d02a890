"""Sources are aligned to the reference grid by windows; invalid files are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.grid import Window, windows
from pipeline.rasters import raster as raster_module
from pipeline.rasters.header import RasterFile
from pipeline.scenes.reference_grid import reference_grid
from pipeline.scenes.source import AlignedSource, Source, open_source
from tests.support.scenes import CRS, TRANSFORM, write_raster

GRID = GeoBox((60, 50), TRANSFORM, CRS)


def source_of(*paths: Path, nodata: float | None = None, **declared: object) -> Source:
    layers = tuple((RasterFile(str(path), nodata=nodata),) for path in paths)
    return Source("s", layers, **declared)


def read(opened: AlignedSource, *, side: int = 64) -> np.ndarray:
    """Read a source in full by windows of `side` pixels; NaN where there is no data."""
    rows, columns = opened.grid.shape
    whole = np.full((opened.bands, rows, columns), np.nan, np.float32)
    for window in windows((rows // opened.scale, columns // opened.scale), side):
        values, valid = opened.read(window)
        s = opened.scale
        cut = tuple(slice(part.start * s, part.stop * s) for part in window.slices)
        whole[:, *cut] = np.where(valid, values, np.nan)
    return whole


def values_of(path: Path, *, side: int = 64, grid: GeoBox = GRID, **declared: Any) -> np.ndarray:
    return read(open_source(source_of(path, **declared), grid), side=side)


def test_aligned_source_is_read_unchanged_in_its_own_dtype(tmp_path: Path) -> None:
    values = np.arange(2 * 60 * 50, dtype=np.uint16).reshape(2, 60, 50)
    values[0, 3, 4] = 9999
    path = write_raster(tmp_path / "a.tif", values, nodata=9999)
    opened = open_source(source_of(path), GRID)
    assert opened.dtype == np.uint16
    assert opened.layers[0][0].alignment.kind == "exact"
    found = read(opened, side=32)
    assert np.isnan(found[:, 3, 4]).all(), "a pixel without data in one band is invalid in all bands"
    found[:, 3, 4] = values[:, 3, 4]
    assert (found == values).all()


def test_bands_of_several_files_keep_the_given_order(tmp_path: Path) -> None:
    paths = [write_raster(tmp_path / f"{n}.tif", np.full((1, 60, 50), n, np.uint8)) for n in (7, 3)]
    opened = open_source(source_of(*paths), GRID)
    assert read(opened)[:, 0, 0].tolist() == [7, 3]


def test_pixels_outside_a_source_are_invalid_without_nodata_value(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "part.tif", np.full((1, 20, 20), 5, np.uint8))
    found = values_of(path)[0]
    assert (found[:20, :20] == 5).all()
    assert np.isnan(found[20:]).all()
    assert np.isnan(found[:, 20:]).all()


def test_declared_nodata_applies_with_and_without_crs(tmp_path: Path) -> None:
    values = np.full((1, 60, 50), 4, np.int16)
    values[0, :10] = -99
    georeferenced = write_raster(tmp_path / "georeferenced.tif", values)
    assert np.isnan(values_of(georeferenced, nodata=-99)[0, :10]).all()
    image = GeoBox((60, 50), Affine.identity(), None)
    bare = write_raster(tmp_path / "bare.tif", values, transform=Affine.identity(), crs=None)
    found = values_of(bare, nodata=-99, grid=image)
    assert np.isnan(found[0, :10]).all()
    assert (found[0, 10:] == 4).all()
    assert reference_grid(source_of(bare)).crs is None


def test_sources_that_cannot_be_aligned_are_refused_by_name(tmp_path: Path) -> None:
    ones = np.ones((1, 60, 50), np.uint8)
    far = write_raster(tmp_path / "far.tif", ones, transform=TRANSFORM * Affine.translation(500, 0))
    with pytest.raises(InputError, match=r"far\.tif.*does not overlap"):
        values_of(far)
    bare = write_raster(tmp_path / "bare.tif", ones[:, :30], crs=None)
    with pytest.raises(InputError, match=r"bare\.tif.*no CRS"):
        values_of(bare)
    with pytest.raises(InputError, match=r"none\.tif.*no such file"):
        values_of(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(InputError, match=r"text\.tif.*cannot be read"):
        values_of(tmp_path / "text.tif")


def test_global_and_south_up_rasters_are_accepted(tmp_path: Path) -> None:
    world = write_raster(
        tmp_path / "world.tif", np.full((1, 180, 360), 3, np.uint8), transform=Affine(1, 0, -180, 0, -1, 90), crs="EPSG:4326"
    )
    assert (values_of(world) == 3).all()
    values = np.arange(60 * 50, dtype=np.uint16).reshape(1, 60, 50)
    flipped = TRANSFORM * Affine.translation(0, 60) * Affine.scale(1, -1)
    south_up = write_raster(tmp_path / "south.tif", values[:, ::-1], transform=flipped)
    assert (values_of(south_up, resampling="nearest") == values).all()


def test_rotated_source_is_resampled_to_the_grid(tmp_path: Path) -> None:
    rotated = TRANSFORM * Affine.translation(25, 30) * Affine.rotation(30) * Affine.translation(-60, -60)
    path = write_raster(tmp_path / "turned.tif", np.full((1, 120, 120), 8, np.uint8), transform=rotated)
    assert (values_of(path) == 8).all()


def test_grid_like_a_source_of_tiles_covers_all_of_them(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 999, (1, 40, 60)).astype(np.int16)
    # The first tile is in the middle of the mosaic; the last overlaps it, the others touch it.
    cuts = [(10, 20, 20, 20), (10, 40, 20, 20), (10, 0, 20, 20), (0, 0, 10, 60), (25, 0, 15, 60)]
    files = []
    for row, column, rows, columns in cuts:
        path = tmp_path / f"y{row}_x{column}.tif"
        tile = values[:, row : row + rows, column : column + columns]
        write_raster(path, tile, transform=TRANSFORM * Affine.translation(column, row))
        files.append(RasterFile(str(path)))
    grid = reference_grid(Source("optical", (tuple(files),)))
    assert (grid.shape, grid.affine) == ((40, 60), TRANSFORM)
    found, valid = open_source(Source("optical", (tuple(files),)), grid).read(Window(0, 0, 40, 60))
    assert valid.all()
    np.testing.assert_array_equal(found, values)
    halved = reference_grid(Source("optical", (tuple(files),), scale=2))
    assert (halved.shape, halved.affine) == ((20, 30), TRANSFORM * Affine.scale(2))


def test_grid_like_a_source_of_files_with_other_pixels_is_that_of_the_first(tmp_path: Path) -> None:
    first, shifted, other = (RasterFile(str(tmp_path / f"{name}.tif")) for name in "abc")
    values = np.ones((1, 20, 20), np.int16)
    write_raster(Path(first.url), values)
    write_raster(Path(shifted.url), values, transform=TRANSFORM * Affine.translation(10.4, 0))
    write_raster(Path(other.url), values, transform=TRANSFORM * Affine.scale(2))
    for more in (shifted, other):
        assert reference_grid(Source("optical", ((first, more),))).shape == (20, 20)


@pytest.mark.parametrize("resolution", [10.0, 9.7], ids=["exact", "resampled"])
def test_window_opens_only_the_tiles_that_it_touches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resolution: float
) -> None:
    """Twelve tiles of 20 x 20 pixels are read as their mosaic in one file, and a window opens four of them at most."""
    values = np.random.default_rng(0).integers(1, 9999, (2, 60, 80)).astype(np.uint16)
    whole = write_raster(tmp_path / "whole.tif", values, nodata=0)
    tiles = []
    for y in range(0, 60, 20):
        for x in range(0, 80, 20):
            place = TRANSFORM * Affine.translation(x, y)
            cut = values[:, y : y + 20, x : x + 20]
            tiles.append(RasterFile(str(write_raster(tmp_path / f"{y}-{x}.tif", cut, transform=place, nodata=0))))
    affine = Affine(resolution, 0, TRANSFORM.c, 0, -resolution, TRANSFORM.f)
    grid = GeoBox((60, 90), affine, CRS)  # ends where no tile is
    opened = open_source(Source("s", (tuple(tiles),), resampling="nearest"), grid)
    expected = values_of(whole, grid=grid, resampling="nearest")
    opens: list[str] = []
    real = raster_module.open_raster

    def counted(file: RasterFile) -> Any:
        opens.append(file.url)
        return real(file)

    monkeypatch.setattr(raster_module, "open_raster", counted)
    np.testing.assert_array_equal(read(opened, side=16), expected)
    most = 0
    for window in windows((60, 90), 16):
        opens.clear()
        _, valid = opened.read(window)
        assert bool(opens) == bool(valid.any())
        most = max(most, len(opens))
    assert 1 < most <= 4
