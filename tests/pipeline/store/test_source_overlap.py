"""Test patches that share file pixels with training patches: compared with the pixels that GDAL resamples from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.transform import from_bounds
from rasterio.warp import Resampling, reproject

from pipeline.codes import CODES
from pipeline.parallel.executor import ThreadExecutor
from pipeline.rasters.header import RasterFile
from pipeline.scenes.source import AlignedSource, Source, open_source
from pipeline.store import source_overlap
from pipeline.store.source_overlap import SourceOverlap, footprints, measure_source_overlap
from tests.support.scenes import CRS, TRANSFORM, write_raster

SHAPE = (24, 80)
PATCH = 5
GRID = GeoBox(SHAPE, TRANSFORM, CRS)


class CodeStore:
    """A store that holds nothing but subset codes (y, x)."""

    def __init__(self, codes: np.ndarray, grid: GeoBox, shard: int = 16) -> None:
        self.codes, self.grid, self.shape, self.shard = codes, grid, codes.shape, shard

    def labelled(self, window: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.codes[window.slices], self.codes[window.slices]


def codes_of(seed: int) -> np.ndarray:
    """Sparse samples: training within a ragged edge on the left, validation and test on the right of it."""
    generator = np.random.default_rng(seed)
    edge = generator.integers(12, 20, (SHAPE[0], 1))
    right = generator.choice([CODES["validation"], CODES["test"]], SHAPE)
    codes = np.where(np.arange(SHAPE[1]) < edge, CODES["train"], right)
    return np.where(generator.random(SHAPE) < 0.3, codes, 0).astype(np.uint8)


def used_by_gdal(shape: tuple[int, int], transform: Affine, crs: str, grid: GeoBox, resampling: str) -> np.ndarray:
    """Which file pixels each grid pixel is computed from, (file pixel, y, x): GDAL's response to each pixel alone."""
    impulses = np.eye(shape[0] * shape[1], dtype=np.float32).reshape(-1, *shape)
    target = np.zeros((len(impulses), *grid.shape), np.float32)
    reproject(
        impulses,
        target,
        src_transform=transform,
        src_crs=crs,
        dst_transform=grid.affine,
        dst_crs=str(grid.crs),
        resampling=Resampling[resampling],
        tolerance=1e-6,
    )
    return abs(target) > 1e-4


def brute_force(codes: np.ndarray, used: np.ndarray) -> int:
    """Number of test patches that use a file pixel that a training patch uses."""
    half = PATCH // 2
    padded = np.pad(used, ((0, 0), (half, half), (half, half)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (PATCH, PATCH), axis=(1, 2)).any(axis=(3, 4))
    trained = patches[:, codes == CODES["train"]].any(axis=1)
    return int(patches[trained][:, codes == CODES["test"]].any(axis=0).sum())


def write(path: Path, shape: tuple[int, int], transform: Affine, crs: str = CRS) -> RasterFile:
    values = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(1, *shape)
    return RasterFile(str(write_raster(path, values, transform=transform, crs=crs)))


def measured(monkeypatch: pytest.MonkeyPatch, source: AlignedSource, codes: np.ndarray) -> SourceOverlap:
    monkeypatch.setattr(source_overlap, "PatchStore", lambda url: CodeStore(codes, GRID))
    found = measure_source_overlap(ThreadExecutor(1), "store", [source], patch=PATCH)["coarse"]
    assert found.tests == (codes == CODES["test"]).sum()
    return found


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "average", "lanczos"])
@pytest.mark.parametrize("size", [4.0, 7.3, 30.0])
def test_shared_pixels_equal_those_gdal_resamples_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float, resampling: str
) -> None:
    # Shifted by a part of a pixel, so that no reference pixel's centre lies on a border or a centre of file pixels.
    transform = TRANSFORM * Affine.translation(-2 * size - 0.13, -2 * size - 0.21) * Affine.scale(size)
    shape = (int(SHAPE[0] / size + 5), int(SHAPE[1] / size + 5))
    file = write(tmp_path / "coarse.tif", shape, transform)
    codes = codes_of(int(size))
    found = measured(monkeypatch, open_source(Source("coarse", ((file,),), resampling=resampling), GRID), codes)
    expected = brute_force(codes, used_by_gdal(shape, transform, CRS, GRID, resampling))
    assert 0 < expected < found.tests or size == 30
    assert found.shared == expected


def test_exactly_repeated_pixels_of_a_coarse_file_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "coarse.tif", (3, 8), TRANSFORM * Affine.scale(10))
    source = open_source(Source("coarse", ((file,),)), GRID)
    assert source.parts[0].alignment.coarser == 10
    codes = codes_of(1)
    ids = np.arange(24).reshape(3, 8).repeat(10, 0).repeat(10, 1)[: SHAPE[0]]
    expected = brute_force(codes, ids == np.arange(24)[:, None, None])
    assert measured(monkeypatch, source, codes).shared == expected


def test_file_in_another_crs_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, bottom, right, top = GRID.footprint("EPSG:4326").boundingbox.bbox
    transform = from_bounds(left - 1e-3, bottom - 1e-3, right + 1e-3, top + 1e-3, 9, 7)
    file = write(tmp_path / "degrees.tif", (7, 9), transform, "EPSG:4326")
    codes = codes_of(3)
    found = measured(monkeypatch, open_source(Source("coarse", ((file,),), resampling="nearest"), GRID), codes)
    assert found.shared == brute_force(codes, used_by_gdal((7, 9), transform, "EPSG:4326", GRID, "nearest"))


def test_finer_source_of_a_coarse_file_is_counted_by_reference_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = TRANSFORM * Affine.translation(-10.3, -10.2) * Affine.scale(6.4)
    file = write(tmp_path / "coarse.tif", (7, 16), transform)
    codes = codes_of(4)
    source = open_source(Source("coarse", ((file,),), resampling="bilinear", scale=2), GRID)
    fine = used_by_gdal((7, 16), transform, CRS, source.grid, "bilinear")
    used = fine.reshape(112, SHAPE[0], 2, SHAPE[1], 2).any(axis=(2, 4))
    assert measured(monkeypatch, source, codes).shared == brute_force(codes, used)


@pytest.mark.parametrize("resampling", ["bilinear", "average", "cubic"])
def test_shared_pixels_of_a_file_as_fine_as_the_grid_are_not_underestimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resampling: str
) -> None:
    transform = TRANSFORM * Affine.translation(-1.3, -1.4)
    shape = (SHAPE[0] + 3, SHAPE[1] + 3)
    file = write(tmp_path / "shifted.tif", shape, transform)
    codes = codes_of(5)
    expected = brute_force(codes, used_by_gdal(shape, transform, CRS, GRID, resampling))
    found = measured(monkeypatch, open_source(Source("coarse", ((file,),), resampling=resampling), GRID), codes)
    assert found.shared == expected


def test_buffer_of_patch_and_reach_leaves_nothing_to_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "coarse.tif", (14, 14), TRANSFORM * Affine.translation(-3.1, -3.2) * Affine.scale(4))
    source = open_source(Source("coarse", ((file,),), resampling="bilinear"), GRID)
    (footprint,) = footprints(source, GRID)
    gap = PATCH - 1 + footprint.reach
    for first in range(1, 12):
        codes = np.zeros(SHAPE, np.uint8)
        codes[:, first], codes[:, first + gap + 1] = CODES["train"], CODES["test"]
        assert measured(monkeypatch, source, codes).shared == 0


def test_tiles_of_one_lattice_have_one_footprint_and_nested_files_none(tmp_path: Path) -> None:
    base = TRANSFORM * Affine.translation(-2.5, -2.5)
    tiles = tuple(
        write(tmp_path / f"{x}.tif", (SHAPE[0] + 9, 40), base * Affine.translation(x, 0)) for x in range(0, SHAPE[1], 30)
    )
    assert len(footprints(open_source(Source("mosaic", (tiles,)), GRID), GRID)) == 1
    nested = write(tmp_path / "nested.tif", SHAPE, TRANSFORM)
    assert footprints(open_source(Source("nested", ((nested,),)), GRID), GRID) == ()
    fine = write(tmp_path / "fine.tif", (2 * SHAPE[0], 2 * SHAPE[1]), TRANSFORM * Affine.scale(0.5))
    assert footprints(open_source(Source("fine", ((fine,),), scale=2), GRID), GRID) == ()
