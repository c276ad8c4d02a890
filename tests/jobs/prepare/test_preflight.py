"""Checks of `mibf prepare` before it writes: grid, shard size, disk space and memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from jobs.prepare.preflight import check_data, check_free_space, check_memory, check_room
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.parallel.executor import ThreadExecutor
from pipeline.rasters.header import RasterFile
from pipeline.scenes.coverage import bands_without_data, sources_without_data
from pipeline.scenes.source import AlignedSource, Source, open_source
from pipeline.store.estimate import COPIES, FILE_BYTES, memory
from tests.support.commands import run
from tests.support.scenes import CRS, TRANSFORM, SmallScene, write_raster


def aligned(folder: Path, *bands: np.ndarray, **declared: Any) -> AlignedSource:
    """A source of one file per band, all with nodata 0."""
    files = [
        RasterFile(str(write_raster(folder / f"b{n}.tif", band[None], nodata=0)), bands=(1,)) for n, band in enumerate(bands)
    ]
    grid = GeoBox(bands[0].shape, TRANSFORM, CRS)
    return open_source(Source("optical", tuple((file,) for file in files), **declared), grid)


def test_bands_without_data_are_found_by_their_file_and_a_single_pixel_of_data_is_enough(tmp_path: Path) -> None:
    full, empty, corner = np.ones((300, 200), np.uint8), np.zeros((300, 200), np.uint8), np.zeros((300, 200), np.uint8)
    corner[299, 0] = 1  # outside all windows that are read first
    source = aligned(tmp_path, full, empty, corner)
    assert sources_without_data(ThreadExecutor(1), [source], (300, 200)) == [0]
    assert bands_without_data(ThreadExecutor(1), source, (300, 200)) == [f"1 of {tmp_path / 'b1.tif'}"]
    assert sources_without_data(ThreadExecutor(1), [aligned(tmp_path, full, corner)], (300, 200)) == []


def test_bands_that_never_have_data_at_the_same_pixel_are_reported(tmp_path: Path) -> None:
    left = np.repeat([[1, 0]], 60, axis=0).repeat(30, axis=1).astype(np.uint8)
    scene: Any = SimpleNamespace(
        name="valley", template=SimpleNamespace(shape=(60, 60)), sources=[aligned(tmp_path, left, 1 - left)], area=None
    )
    with pytest.raises(
        InputError, match=r"'valley': source 'optical' has no valid pixel.*no pixel has data in all its bands"
    ):
        check_data([scene], ThreadExecutor(1))


@pytest.mark.parametrize("command", ["plan", "prepare"])
def test_excessive_grid_shard_disk_or_memory_needs_exit_2(
    scene: SmallScene, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    bounds = "[400000, 5798500, 401300, 5800000]"
    grid = f"scenes.0.grid={{crs: 'EPSG:32633', resolution: 0.0001, bounds: {bounds}}}"
    assert "is `grid.resolution` in the units of `grid.crs`" in run(scene, grid, command=command, status=2).stderr
    assert (
        "prepare.shard: the shard side must be a multiple of 128"
        in run(scene, "prepare.shard=200", command=command, status=2).stderr
    )
    with monkeypatch.context() as patch:
        patch.setattr(storage, "free_bytes", lambda url: 1000)
        assert "0 MB are free" in run(scene, command=command, status=2).stderr
    with monkeypatch.context() as patch:
        patch.setattr("jobs.prepare.preflight.available_memory", lambda: 10**8)
        assert "need about" in run(scene, command=command, status=2).stderr
    assert not (scene.folder / "work").exists()


def prepared_scene(side: int, *, shards: int = 8) -> Any:
    """A scene of `side` x `side` pixels of 10 bytes each, in shards of that side or of 1024 pixels."""
    template = SimpleNamespace(shape=(side, side), shard=min(side, 1024), bytes_per_pixel=10)
    size = 10 * side * side
    return SimpleNamespace(
        name="valley", template=template, shards_read=[None] * shards, uncompressed_bytes=size, sources=[], files=[]
    )


def test_memory_estimate_counts_concurrent_shards_not_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.prepare.preflight.available_memory", lambda: 600 << 20)
    check_memory([prepared_scene(1024, shards=1)], workers=64)
    with pytest.raises(InputError, match=r"'valley': 64 concurrent shards of 1024 x 1024 pixels .* Reduce prepare\.shard"):
        check_memory([prepared_scene(1024, shards=64)], workers=64)
    monkeypatch.setattr("jobs.prepare.preflight.available_memory", lambda: 100 << 20)
    with pytest.raises(InputError, match="Reduce the band count, or use more memory or a cluster"):
        check_memory([prepared_scene(128)], workers=1)


def test_memory_estimate_counts_bands_that_are_read_but_not_kept() -> None:
    scene = prepared_scene(1024)
    before = memory(scene, 2)
    scene.sources.append(SimpleNamespace(bytes_per_pixel=scene.template.bytes_per_pixel + 40, dates_bytes=1000))
    assert memory(scene, 2) - before == 2 * COPIES * 1024 * 1024 * 40 + 2 * 1000, "and the dates that are combined"
    scene.files += [None] * 600
    assert memory(scene, 2) - before == 2 * COPIES * 1024 * 1024 * 40 + 2 * 1000 + 600 * FILE_BYTES


def test_free_space_is_checked_where_it_is_known() -> None:
    check_free_space("s3://bucket/work", 10**15, None)
    check_free_space("/work", 100, 100)
    with pytest.raises(InputError, match="/work: the stores need about 2 MB, but only 1 MB are free"):
        check_free_space("/work", 2 * 10**6, 10**6)


def test_shards_already_written_count_as_free_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "free_bytes", lambda url: 10 * 1024**2)
    monkeypatch.setattr("jobs.prepare.preflight.estimate", lambda scene, workers: SimpleNamespace(stored_bytes=11 * 1024**2))
    check_room([prepared_scene(1024)], "/work", written=10 * 1024**2)
    with pytest.raises(InputError, match="/work: the stores need about 12 MB, but only 10 MB are free"):
        check_room([prepared_scene(1024)], "/work", written=0)
