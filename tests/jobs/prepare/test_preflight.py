"""Checks of `mibf prepare` before it writes: grid, shard size, disk space and memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.prepare.preflight import check_free_space, check_memory, check_room
from mibf.errors import InputError
from pipeline.io import storage
from tests.support.commands import run
from tests.support.scenes import SmallScene


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
    return SimpleNamespace(name="valley", template=template, shards=[None] * shards)


def test_memory_estimate_counts_concurrent_shards_not_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.prepare.preflight.available_memory", lambda: 600 << 20)
    check_memory([prepared_scene(1024, shards=1)], workers=64)
    with pytest.raises(InputError, match=r"'valley': 64 concurrent shards of 1024 x 1024 pixels .* Reduce prepare\.shard"):
        check_memory([prepared_scene(1024, shards=64)], workers=64)
    monkeypatch.setattr("jobs.prepare.preflight.available_memory", lambda: 100 << 20)
    with pytest.raises(InputError, match="Reduce the band count, or use more memory or a cluster"):
        check_memory([prepared_scene(128)], workers=1)


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
