"""The prepare stage: threads and Dask clusters, resuming after an interruption, and the summary."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

import pipeline.store.build
from jobs.prepare import stage
from mibf.normalization import BandScaling
from pipeline.io import storage
from pipeline.rasters.header import UnreadableError
from pipeline.stac import composite
from pipeline.store.patch_store import PatchStore
from pipeline.store.records import ShardRecord, StoreRecords
from tests.support.commands import run
from tests.support.http_server import served
from tests.support.scenes import CLASSES, TRANSFORM, SmallScene, write_raster
from tests.support.stores import SHARDS, objects


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a dask.distributed cluster of two processes on this machine."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_dask_cluster_writes_the_same_bytes_as_threads(large: SmallScene, scheduler: str) -> None:
    run(large, SHARDS)
    address = f"prepare.engine={scheduler}"
    run(large, SHARDS, address, f"workspace={large.folder / 'other'}")
    assert objects(large) == objects(large, "other")
    for name in ("scaling.json", "split.json"):
        assert (large.folder / "work" / name).read_bytes() == (large.folder / "other" / name).read_bytes()
    (checked,) = run(large, address, f"workspace={large.folder / 'other'}", command="verify")["stores"]
    assert checked["intact"]


def with_season(scene: SmallScene) -> list[Any]:
    """Replace the optical source of the large scene by items of two months, with clouds in pixels of twice the size."""
    drawn, features = np.random.default_rng(1), []
    for day in ("2024-06-03", "2024-06-13", "2024-06-23", "2024-07-03", "2024-07-13"):
        values = {name: drawn.integers(1, 9999, (1, 600, 500)).astype(np.uint16) for name in ("red", "nir")}
        values["scl"] = np.where(drawn.random((1, 300, 250)) < 0.02, 9, 4).astype(np.uint8)
        for name, own in values.items():
            place = TRANSFORM * Affine.scale(600 / own.shape[1])
            write_raster(scene.folder / f"{day}_{name}.tif", own, transform=place, nodata=0)
        features.append(
            {
                "type": "Feature", "stac_version": "1.0.0", "id": day, "geometry": None, "links": [],
                "properties": {"datetime": f"{day}T10:00:00Z"},
                "assets": {name: {"href": f"{day}_{name}.tif"} for name in values},
            }
        )  # fmt: skip  # values in rows that belong together
    path = scene.folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    mask = {"asset": "scl", "invalid": [9], "dilate": 3}
    stac = {"url": str(path), "assets": ["red", "nir"], "composite": "median", "periods": "month", "mask": mask}
    (first,) = scene.config()["scenes"]
    optical = {"stac": stac | {"gaps": "interpolate"}}
    return [first | {"sources": first["sources"] | {"optical": optical}}]


@pytest.mark.slow
def test_dask_workers_and_any_shards_give_the_same_composites(
    large: SmallScene, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = with_season(large)
    run(large, SHARDS, scenes=scenes)
    run(large, SHARDS, f"prepare.engine={scheduler}", f"workspace={large.folder / 'other'}", scenes=scenes)
    assert objects(large) == objects(large, "other")
    for name in ("scaling.json", "split.json"):
        assert (large.folder / "work" / name).read_bytes() == (large.folder / "other" / name).read_bytes()
    monkeypatch.setattr(composite, "DATES_BYTES", 20_000)  # parts of a few rows
    run(large, "prepare.shard=384", f"workspace={large.folder / 'wide'}", scenes=scenes)
    stores = [PatchStore(str(large.folder / workspace / "stores/small.zarr")) for workspace in ("work", "wide")]
    counts = stores[0].array("counts/optical")[:]
    assert {0, 1, 2, 3} <= set(np.unique(counts).tolist()), "there are gaps, and dates to combine"
    for name in ("sources/optical", "valid/optical", "counts/optical", "labels", "split"):
        assert np.array_equal(stores[0].array(name)[:], stores[1].array(name)[:])


@pytest.mark.slow
def test_file_unreadable_on_a_dask_worker_is_named_in_the_error(large: SmallScene, scheduler: str) -> None:
    path = large.folder / "optical.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = run(large, SHARDS, f"prepare.engine={scheduler}", status=2).stderr
    assert "optical.tif" in message
    assert "truncated" in message
    assert not (large.folder / "work").exists()


def test_unreachable_dask_scheduler_exits_2(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.parallel.executor.TIMEOUT", 1)
    message = run(scene, "prepare.engine=tcp://127.0.0.1:1", status=2).stderr
    assert "prepare.engine tcp://127.0.0.1:1: no Dask scheduler responds there" in message
    assert not (scene.folder / "work").exists()


def test_shard_size_does_not_change_pixels_or_normalization(large: SmallScene) -> None:
    run(large, SHARDS)
    store = PatchStore(str(large.folder / "work/stores/small.zarr"))
    arrays = {name: store.array(name)[:] for name in ("sources/optical", "sources/radar", "valid/radar", "labels", "split")}
    scaling = (large.folder / "work/scaling.json").read_bytes()
    run(large, "prepare.shard=384")
    other = PatchStore(str(large.folder / "work/stores/small.zarr"))
    assert other.shard == 384
    for name, values in arrays.items():
        assert (other.array(name)[:] == values).all()
    assert (large.folder / "work/scaling.json").read_bytes() == scaling


def failing_after(monkeypatch: pytest.MonkeyPatch, shards: int, error: BaseException) -> list[ShardRecord]:
    """Make shard writing fail after `shards` shards; return the records of the written ones."""
    write, done = pipeline.store.build.fill_shard, []

    def fill_shard_or_fail(target: Any, window: Any) -> Any:
        if len(done) >= shards:
            raise error
        filled = write(target, window)
        done.append(filled[0])
        return filled

    monkeypatch.setattr(pipeline.store.build, "fill_shard", fill_shard_or_fail)
    return done


def test_full_disk_is_reported_and_rerun_resumes_from_finished_shards(
    large: SmallScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        done = failing_after(patch, 7, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        result = run(large, SHARDS, status=1)
    assert "the disk is full" in result.stderr
    assert "resumes from the finished shards" in result.stderr
    assert not (large.folder / "work/manifests/prepare.json").exists()
    assert "run `mibf prepare`" in run(large, command="train", status=2).stderr
    run(large, SHARDS)
    resumed = StoreRecords.read(str(large.folder / "work/stores/small.shards.json"))
    assert len(resumed.shards) == 20
    assert all(record in resumed.shards for record in done), (
        "records with their original times: the shards were not rewritten"
    )
    first = (
        objects(large),
        (large.folder / "work/scaling.json").read_bytes(),
        (large.folder / "work/split.json").read_bytes(),
    )
    run(large, SHARDS, f"workspace={large.folder / 'fresh'}")
    fresh = large.folder / "fresh"
    assert (objects(large, "fresh"), (fresh / "scaling.json").read_bytes(), (fresh / "split.json").read_bytes()) == first
    left = sorted(p.name for p in (large.folder / "work/stores").iterdir())
    assert left == ["small.shards.json", "small.zarr"], "no work in progress is left"


def test_unfinished_store_of_other_inputs_is_not_resumed(large: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        done = failing_after(patch, 7, OSError(errno.ENOSPC, "full"))
        run(large, SHARDS, status=1)
    optical = np.random.default_rng(9).integers(1, 9999, (3, 600, 500)).astype(np.uint16)
    write_raster(large.folder / "optical.tif", optical)
    run(large, SHARDS)
    shards = StoreRecords.read(str(large.folder / "work/stores/small.shards.json")).shards
    assert not any(record in shards for record in done)
    store = PatchStore(str(large.folder / "work/stores/small.zarr"))
    assert (store.array("sources/optical")[:] == optical).all()


@pytest.mark.parametrize("harm", ["template.json", "array", "group", "record", "file"])
def test_damaged_unfinished_store_is_rebuilt_from_scratch(
    large: SmallScene, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    with monkeypatch.context() as patch:
        failing_after(patch, 7, OSError(errno.ENOSPC, "full"))
        run(large, SHARDS, status=1)
    work = large.folder / "work/stores/small.zarr.new"
    records = Path(f"{work}.shards")
    if harm == "file":
        shutil.rmtree(work)
        work.write_text("in the way")
    else:
        (records / "0_0.json").write_text('{"objects": []}')
        places = {"template.json": records / harm, "array": work / "labels/zarr.json", "group": work / "zarr.json"}
        places.get(harm, records / "0_128.json").write_text("[]")
    run(large, SHARDS)
    assert run(large, command="verify")["stores"][0]["intact"]


def test_shards_with_missing_or_truncated_objects_are_rewritten(large: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing_after(patch, 7, OSError(errno.ENOSPC, "full"))
        run(large, SHARDS, status=1)
    work = large.folder / "work/stores/small.zarr.new"
    objects_ = sorted(work.glob("sources/optical/c/0/*/*"))
    objects_[0].unlink()
    objects_[1].write_bytes(objects_[1].read_bytes()[:-5])
    run(large, SHARDS)
    (checked,) = run(large, command="verify")["stores"]
    assert checked["intact"]


@pytest.mark.slow
def test_killed_prepare_resumes_from_finished_shards(large: SmallScene) -> None:
    config = large.write_config(prepare={"shard": 128})
    records = large.folder / "work/stores/small.zarr.new.shards"
    running = subprocess.Popen([sys.executable, "-m", "jobs.cli", "prepare", str(config)], stderr=subprocess.DEVNULL)
    try:
        while running.poll() is None and len(list(records.glob("*_*.json"))) < 3:
            time.sleep(0.002)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    if (large.folder / "work/manifests/prepare.json").exists():
        pytest.skip("prepare finished before it could be killed")
    written = [ShardRecord.from_json(storage.read_json(str(path))) for path in records.glob("*_*.json")]
    run(large, SHARDS)
    shards = StoreRecords.read(str(large.folder / "work/stores/small.shards.json")).shards
    assert len(written) >= 3
    assert all(record in shards for record in written), "records with their original times: the shards were not rewritten"
    (checked,) = run(large, command="verify")["stores"]
    assert checked["intact"]


def test_source_named_like_the_zarr_chunk_prefix_is_accepted(scene: SmallScene) -> None:
    config = scene.config()
    config["scenes"][0]["sources"]["c"] = config["scenes"][0]["sources"].pop("radar")
    run(scene, **config)
    assert run(scene, command="verify", **config)["stores"][0]["intact"]


def test_interrupt_after_store_is_in_place_does_not_rewrite_it(large: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jobs.prepare.stage._warn_about_bands", interrupted)
        run(large, SHARDS, status=130)
    assert not (large.folder / "work/manifests/prepare.json").exists()
    before = StoreRecords.read(str(large.folder / "work/stores/small.shards.json")).shards
    run(large, SHARDS)
    assert StoreRecords.read(str(large.folder / "work/stores/small.shards.json")).shards == before
    assert run(large, command="verify")["stores"][0]["intact"]
    scaling = (large.folder / "work/scaling.json").read_bytes()
    run(large, SHARDS, f"workspace={large.folder / 'fresh'}")
    assert (large.folder / "fresh/scaling.json").read_bytes() == scaling


@pytest.mark.parametrize("remote", [True, False])
def test_finished_shards_are_kept_after_a_read_failure_only_if_the_file_is_remote(
    large: SmallScene, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    """An unreadable file exits with 2; if it is remote, the finished shards are kept for the next run."""
    monkeypatch.setattr("jobs.prepare.stage._is_remote", lambda scene: remote)
    with monkeypatch.context() as patch:
        done = failing_after(patch, 7, UnreadableError("optical.tif: cannot be read (503)"))
        assert "cannot be read (503)" in run(large, SHARDS, status=2).stderr
    assert (large.folder / "work").exists() == remote
    run(large, SHARDS)
    shards = StoreRecords.read(str(large.folder / "work/stores/small.shards.json")).shards
    assert all(record in shards for record in done) == remote


def test_summary_lists_counts_per_class_and_subset(scene: SmallScene) -> None:
    lines = run(scene)["stages"][0]["lines"]
    counts = json.loads((scene.folder / "work/split.json").read_text())["counts"]
    for c in CLASSES:
        (line,) = [line for line in lines if line.split()[:1] == [c["name"]]]
        assert [int(n.replace(",", "")) for n in line.split()[1:]] == [counts[s][c["name"]] for s in counts]


@pytest.mark.slow
def test_living_dask_workers_read_the_current_version_of_files_on_the_web(scene: SmallScene, scheduler: str) -> None:
    with served(scene.folder) as address:
        config = scene.config()["scenes"]
        config[0]["sources"]["optical"] = {"url": f"{address}/optical.tif"}
        config[0]["labels"]["url"] = f"{address}/labels.tif"
        for value, label in ((5, 1), (7, 2)):
            path = scene.folder / "optical.tif"
            write_raster(path, np.full_like(scene.optical, value))
            os.utime(path, (1577836800 + value,) * 2)
            labels = np.where(scene.truth == 1, label, scene.truth)
            write_raster(scene.folder / "labels.tif", labels[None])
            os.utime(scene.folder / "labels.tif", (1577836800 + value,) * 2)
            run(scene, f"prepare.engine={scheduler}", scenes=config, classes=CLASSES[1:] if label == 2 else CLASSES)
            store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
            assert (store.array("sources/optical")[:] == value).all()
            assert (store.array("labels")[:] == labels).all()


def test_input_that_is_replaced_while_it_is_read_is_refused(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pipeline.store.build.fill_shard

    def fill_shard_and_replace(target: Any, window: Any) -> Any:
        filled = write(target, window)
        write_raster(scene.folder / "radar.tif", np.ones((1, 150, 130), np.float32))
        return filled

    monkeypatch.setattr(pipeline.store.build, "fill_shard", fill_shard_and_replace)
    message = run(scene, status=2).stderr
    assert "radar.tif changed while being read" in message
    assert "optical.tif" not in message
    assert not list((scene.folder / "work/stores").glob("*")), "a store of two versions is not kept"


@pytest.mark.parametrize(
    ("constant", "text"),
    [
        ([4], "band 5 is"),
        ([0, 1, 2, 9], "bands 1-3, 10 are"),
        (range(400), "bands 1-400 are"),
        (range(0, 400, 2), "200 bands are"),
    ],
)
def test_warning_of_constant_bands_stays_short(monkeypatch: pytest.MonkeyPatch, constant: Sequence[int], text: str) -> None:
    low = np.zeros(400, np.float32)
    high = np.ones(400, np.float32)
    high[list(constant)] = 0
    warnings: list[str] = []
    monkeypatch.setattr(stage, "warn", warnings.append)
    stage._warn_about_bands({"cube": BandScaling(low=low, high=high, fill=low)})
    assert warnings == [f"source 'cube': {text} constant over the training pixels and set to 0"]
