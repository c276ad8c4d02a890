"""Maps under real faults: killed workers, nodes and drivers, tiles that kill their worker, a full disk.

Every test checks the same guarantee: the finished map is byte-identical to an undisturbed one, and only tiles that were in
progress are mapped again.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.runtime.progress import pluralize
from tests.support.mapped_scene import TILES, Mapped, alive, disturbed, workers_below
from tests.support.simulated_cluster import cluster_of
from tests.support.waiting import await_

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1200)]
ON_RAY = ("map.workers=2",)


@pytest.fixture
def mapped(trained: Mapped, tmp_path: Path) -> Mapped:
    """A private copy of the trained scene, without a map."""
    return trained.copy(tmp_path / "scene")


def await_tiles(mapped: Mapped, process: Any, tiles: int = 2) -> None:
    """Wait until a background map has recorded a number of finished tiles in its ledger."""
    await_(lambda: process.poll() is not None or (mapped.map.exists() and len(mapped.events("done")) >= tiles))
    assert process.poll() is None, mapped.errors()


@pytest.mark.parametrize("readers", [0, 1])
def test_ray_worker_writes_the_same_bytes_as_a_map_without_ray(mapped: Mapped, reference: Mapped, readers: int) -> None:
    """One worker on all cores, with and without a reader; later tests use two workers with one core each."""
    done = mapped.mibf_apart("map", "map.workers=1", f"map.readers={readers}")
    assert done.status == 0, done.stderr
    assert "Warning" not in done.stderr, "warnings of Ray must not be shown"
    assert mapped.published() == reference.published()
    assert len({event["worker"] for event in mapped.events("done")}) == 1


def test_killed_map_worker_is_replaced_automatically(mapped: Mapped, reference: Mapped) -> None:
    with mapped.running("map", *ON_RAY, environment=disturbed(mapped.folder / "site", sleep=1)) as process:
        await_tiles(mapped, process)
        workers = workers_below(process.pid)
        assert len(workers) == 2
        workers[0].kill()
        assert process.wait(timeout=600) == 0, mapped.errors()
    assert mapped.count("done") == dict.fromkeys(TILES, 1)
    assert not mapped.count("failed")
    assert mapped.published() == reference.published()


def test_node_failure_loses_no_tiles(mapped: Mapped, reference: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node has one logical GPU, which Ray assigns to its worker."""
    environment = disturbed(mapped.folder / "site", sleep=1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)  # inherited by the nodes and their workers
    with cluster_of(2, gpus=1) as (cluster, nodes):
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with mapped.running("map", *ON_RAY, "map.attempts=3", environment={}) as process:
            await_tiles(mapped, process)
            cluster.remove_node(nodes[1], allow_graceful=False)
            assert process.wait(timeout=600) == 0, mapped.errors()
    assert "with a GPU each" in mapped.errors()
    assert mapped.count("done") == dict.fromkeys(TILES, 1)
    assert mapped.published() == reference.published()


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_map_resumes_with_the_missing_tiles(mapped: Mapped, reference: Mapped, workers: int) -> None:
    with mapped.running("map", f"map.workers={workers}", environment=disturbed(mapped.folder / "site", sleep=1)) as process:
        await_tiles(mapped, process)
        workers = workers_below(process.pid)
        process.kill()
    before = mapped.events("done")
    first = {event["tile"] for event in before}
    assert 2 <= len(first) < 9
    assert mapped.states() == {"done": len(first), "pending": 9 - len(first)}
    assert not mapped.published(), "an incomplete map must not be published"
    again = mapped.does("rerun")
    assert f"{pluralize(9 - len(first), 'tiles')} mapped in" in again.stdout
    assert mapped.events("done")[: len(before)] == before
    assert mapped.count("done") == dict.fromkeys(TILES, 1), "tiles recorded as done were not mapped again"
    assert mapped.published() == reference.published()
    await_(lambda: not any(alive(worker) for worker in workers))


def test_tile_that_kills_its_worker_fails_and_all_others_are_mapped(mapped: Mapped, reference: Mapped) -> None:
    fatal = disturbed(mapped.folder / "site", fatal="small/y64_x64")
    failed = mapped.mibf_apart("map", *ON_RAY, "map.attempts=2", environment=fatal)
    assert failed.status == 3, failed.stderr
    assert "Traceback" not in failed.stderr
    assert "small: 1 of 9 tiles failed; nothing was published" in failed.stderr
    assert "small/y64_x64: worker died (out of memory or killed)" in failed.stderr
    assert mapped.count("failed")["y64_x64"] == 2
    assert mapped.count("done") == dict.fromkeys([tile for tile in TILES if tile != "y64_x64"], 1)
    (scene,) = mapped.does("status", "--json").json
    assert [cause["tiles"] for cause in scene["causes"]] == [["small/y64_x64"]]
    assert "worker died" in scene["causes"][0]["cause"]
    mapped.does("rerun")
    assert mapped.published() == reference.published()


# --- publishing on a full disk


def test_full_disk_during_publishing_leaves_no_partial_output(
    mapped: Mapped, reference: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.publishing.map_file.assemble", full)
        failed = mapped.does("map", status=1)
    assert "the disk is full" in failed.stderr
    assert not mapped.published()
    assert not (mapped.map / "item.json").exists()
    assert not (mapped.map / ".staging").exists()
    mapped.does("rerun")
    assert mapped.count("done") == dict.fromkeys(TILES, 1), "no tile was mapped again"
    assert mapped.published() == reference.published()
