"""prepare as a whole: engines, resuming, splits, checks, and what it says of itself."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from typer.testing import CliRunner

import pipeline.fill
from jobs.cli import app
from jobs.config import load
from mibf.errors import InputError
from pipeline import storage
from pipeline.fill import Records, ShardRecord
from pipeline.grid import Window
from pipeline.labels import UNLABELLED
from pipeline.raster import UnreadableError
from pipeline.split import CODES, near_any
from pipeline.store import PatchStore
from tests.conftest import CLASSES, TRANSFORM, SmallScene, make_scene, write_raster
from tests.web import served


@pytest.fixture
def large(tmp_path: Path) -> SmallScene:
    """A scene of 5 x 4 shards of 128 pixels, its last ones cut."""
    scene = make_scene(tmp_path)
    generator = np.random.default_rng(0)
    values = generator.integers(1, 9999, (3, 600, 500)).astype(np.uint16)
    write_raster(tmp_path / "optical.tif", values)
    write_raster(tmp_path / "radar.tif", values[:1].astype(np.float32) / 3)
    labels = generator.choice(np.array([1, 2, 5], np.uint8), (30, 25)).repeat(20, 0).repeat(20, 1)
    write_raster(tmp_path / "labels.tif", labels[None])
    return scene


def run(scene: SmallScene, *overrides: str, command: str = "prepare", status: int = 0, **changes: Any) -> Any:
    """The JSON summary of a command, or its message where it fails."""
    arguments = [command, str(scene.write_config(**changes)), "--json"] + [p for o in overrides for p in ("--set", o)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout) if status == 0 else result


def objects(scene: SmallScene, workspace: str = "work") -> dict[str, bytes]:
    """Every object of the scene's store that holds pixels."""
    store = scene.folder / workspace / "stores" / "small.zarr"
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file() and p.name != "zarr.json"}


SHARDS = "prepare.shard=128"


# --- engines


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A dask.distributed cluster of two processes on this machine."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_a_cluster_writes_the_same_bytes_as_threads(large: SmallScene, scheduler: str) -> None:
    run(large, SHARDS)
    address = f"prepare.scheduler={scheduler}"
    run(large, SHARDS, address, f"workspace={large.folder / 'other'}")
    assert objects(large) == objects(large, "other")
    for name in ("scaling.json", "split.json"):
        assert (large.folder / "work" / name).read_bytes() == (large.folder / "other" / name).read_bytes()
    (checked,) = run(large, address, f"workspace={large.folder / 'other'}", command="verify")["stores"]
    assert checked["whole"]


@pytest.mark.slow
def test_a_file_that_a_worker_cannot_read_is_named(large: SmallScene, scheduler: str) -> None:
    path = large.folder / "optical.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = run(large, SHARDS, f"prepare.scheduler={scheduler}", status=2).stderr
    assert "optical.tif" in message
    assert "cut short" in message
    assert not (large.folder / "work").exists()


def test_a_scheduler_that_is_not_there(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.TIMEOUT", 1)
    message = run(scene, "prepare.scheduler=tcp://127.0.0.1:1", status=2).stderr
    assert "prepare.scheduler tcp://127.0.0.1:1: no Dask scheduler answers there" in message
    assert not (scene.folder / "work").exists()


def test_the_side_of_the_shards_changes_no_pixel(large: SmallScene) -> None:
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


# --- resuming


def failing_after(monkeypatch: pytest.MonkeyPatch, shards: int, error: BaseException) -> list[ShardRecord]:
    """Have the writing of shards fail after some; the records of those that were written."""
    write, done = pipeline.fill.fill_shard, []

    def once(target: Any, window: Any) -> Any:
        if len(done) >= shards:
            raise error
        filled = write(target, window)
        done.append(filled.record)
        return filled

    monkeypatch.setattr(pipeline.fill, "fill_shard", once)
    return done


def test_a_full_disk_is_told_and_the_same_command_goes_on(large: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        done = failing_after(patch, 7, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        result = run(large, SHARDS, status=1)
    assert "the disk is full" in result.stderr
    assert "goes on from the shards that are whole" in result.stderr
    assert not (large.folder / "work/manifests/prepare.json").exists()
    assert "run `mibf prepare`" in run(large, command="train", status=2).stderr
    run(large, SHARDS)
    resumed = Records.read(str(large.folder / "work/stores/small.shards.json"))
    assert len(resumed.shards) == 20
    assert all(record in resumed.shards for record in done), "with the times that they took: not written again"
    first = (
        objects(large),
        (large.folder / "work/scaling.json").read_bytes(),
        (large.folder / "work/split.json").read_bytes(),
    )
    run(large, SHARDS, f"workspace={large.folder / 'fresh'}")
    fresh = large.folder / "fresh"
    assert (objects(large, "fresh"), (fresh / "scaling.json").read_bytes(), (fresh / "split.json").read_bytes()) == first
    left = sorted(p.name for p in (large.folder / "work/stores").iterdir())
    assert left == ["small.shards.json", "small.zarr"], "nothing in work is left"


def test_what_was_begun_for_other_inputs_is_not_gone_on_with(large: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        done = failing_after(patch, 7, OSError(errno.ENOSPC, "full"))
        run(large, SHARDS, status=1)
    optical = np.random.default_rng(9).integers(1, 9999, (3, 600, 500)).astype(np.uint16)
    write_raster(large.folder / "optical.tif", optical)
    run(large, SHARDS)
    shards = Records.read(str(large.folder / "work/stores/small.shards.json")).shards
    assert not any(record in shards for record in done)
    store = PatchStore(str(large.folder / "work/stores/small.zarr"))
    assert (store.array("sources/optical")[:] == optical).all()


@pytest.mark.parametrize("harm", ["template.json", "array", "group", "record", "file"])
def test_what_is_damaged_in_work_is_begun_anew(large: SmallScene, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
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
    assert run(large, command="verify")["stores"][0]["whole"]


def test_a_shard_whose_object_was_lost_is_written_again(large: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing_after(patch, 7, OSError(errno.ENOSPC, "full"))
        run(large, SHARDS, status=1)
    work = large.folder / "work/stores/small.zarr.new"
    objects_ = sorted(work.glob("sources/optical/c/0/*/*"))
    objects_[0].unlink()
    objects_[1].write_bytes(objects_[1].read_bytes()[:-5])
    run(large, SHARDS)
    (checked,) = run(large, command="verify")["stores"]
    assert checked["whole"]


@pytest.mark.slow
def test_killed_at_work_it_goes_on(large: SmallScene) -> None:
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
        pytest.skip("it was done before it could be killed")
    written = [ShardRecord.from_json(storage.read_json(str(path))) for path in records.glob("*_*.json")]
    run(large, SHARDS)
    shards = Records.read(str(large.folder / "work/stores/small.shards.json")).shards
    assert len(written) >= 3
    assert all(record in shards for record in written), "with the times that they took: not written again"
    (checked,) = run(large, command="verify")["stores"]
    assert checked["whole"]


# --- verify


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: p.unlink(), "is missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes instead of"),
        (lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]), "another checksum"),
    ],
)
@pytest.mark.parametrize("key", ["sources/optical/c/0/1/2", "valid/radar/c/0/0", "labels/zarr.json", "zarr.json"])
def test_verify_names_what_is_broken(large: SmallScene, key: str, harm: Any, message: str) -> None:
    run(large, SHARDS)
    harm(large.folder / "work/stores/small.zarr" / key)
    result = CliRunner().invoke(app, ["verify", str(large.write_config())])
    assert result.exit_code == 3
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("  ")]
    assert line.startswith(f"  {key}")
    assert message in line
    if key == "sources/optical/c/0/1/2":
        assert "(rows 128 to 255, columns 256 to 383)" in line
    assert "`mibf prepare` writes it anew" in result.stderr
    run(large, SHARDS)
    assert run(large, command="verify")["stores"][0]["whole"]


def test_verify_before_prepare_is_refused(scene: SmallScene) -> None:
    assert "`prepare` is not finished" in run(scene, command="verify", status=2).stderr


def test_a_chunk_that_changed_is_noticed_when_it_is_read(large: SmallScene) -> None:
    run(large, SHARDS)
    path = large.folder / "work/stores/small.zarr/sources/optical/c/0/0/0"
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    store = PatchStore(str(large.folder / "work/stores/small.zarr"))
    with pytest.raises(InputError, match="sources/optical/c/0/0/0: is damaged"):
        store.read_source("optical", Window(0, 0, 64, 64))


def test_a_shard_that_was_lost_is_not_taken_as_ground_without_data(large: SmallScene) -> None:
    run(large, SHARDS)
    (large.folder / "work/stores/small.zarr/valid/optical/c/1/1").unlink()
    store = PatchStore(str(large.folder / "work/stores/small.zarr"))
    with pytest.raises(InputError, match=r"valid/optical/c/1/1: is damaged \(shard .* is missing\)"):
        store.usable(Window(100, 100, 100, 100))
    assert store.usable(Window(0, 0, 100, 100)).all()


def test_verify_goes_on_past_what_it_cannot_read(large: SmallScene) -> None:
    run(large, SHARDS)
    path = large.folder / "work/stores/small.zarr/labels/c/0/0"
    path.unlink()
    path.mkdir()
    result = CliRunner().invoke(app, ["verify", str(large.write_config())])
    assert result.exit_code == 3
    assert "labels/c/0/0" in result.stdout


def test_a_source_may_have_any_name(scene: SmallScene) -> None:
    config = scene.config()
    config["scenes"][0]["sources"]["c"] = config["scenes"][0]["sources"].pop("radar")
    run(scene, **config)
    assert run(scene, command="verify", **config)["stores"][0]["whole"]


def test_interrupted_when_the_store_was_in_its_place_it_is_not_written_again(
    large: SmallScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jobs.prepare._warn_of_bands", interrupted)
        run(large, SHARDS, status=130)
    assert not (large.folder / "work/manifests/prepare.json").exists()
    before = Records.read(str(large.folder / "work/stores/small.shards.json")).shards
    run(large, SHARDS)
    assert Records.read(str(large.folder / "work/stores/small.shards.json")).shards == before
    assert run(large, command="verify")["stores"][0]["whole"]
    scaling = (large.folder / "work/scaling.json").read_bytes()
    run(large, SHARDS, f"workspace={large.folder / 'fresh'}")
    assert (large.folder / "fresh/scaling.json").read_bytes() == scaling


@pytest.mark.parametrize("remote", [True, False])
def test_what_a_server_does_not_give_is_asked_for_again_later(
    large: SmallScene, monkeypatch: pytest.MonkeyPatch, remote: bool
) -> None:
    """A file that cannot be read to its end is refused; but of a server's, the shards that are whole are kept."""
    monkeypatch.setattr("jobs.prepare._is_remote", lambda scene: remote)
    with monkeypatch.context() as patch:
        done = failing_after(patch, 7, UnreadableError("optical.tif: cannot be read (503)"))
        assert "cannot be read (503)" in run(large, SHARDS, status=2).stderr
    assert (large.folder / "work").exists() == remote
    run(large, SHARDS)
    shards = Records.read(str(large.folder / "work/stores/small.shards.json")).shards
    assert all(record in shards for record in done) == remote


def test_a_prepared_workspace_does_not_need_the_files_any_more(scene: SmallScene) -> None:
    run(scene)
    (scene.folder / "optical.tif").unlink()
    from jobs.stages import stale_needs

    assert stale_needs(load(str(scene.write_config())), "train") == ["prepare"]
    assert run(scene, command="verify")["stores"][0]["whole"]


def test_a_store_of_another_format_is_refused(scene: SmallScene) -> None:
    run(scene)
    path = scene.folder / "work/stores/small.zarr/zarr.json"
    path.write_text(path.read_text().replace('"mibf:format": 2', '"mibf:format": 1'))
    with pytest.raises(InputError, match="store format 1, this version reads 2; run `mibf prepare` again"):
        PatchStore(str(path.parent))


# --- plan


def test_plan_writes_nothing_and_tells_what_prepare_then_writes(large: SmallScene) -> None:
    before = set(large.folder.rglob("*"))
    planned = run(large, SHARDS, command="plan")["scenes"]["small"]
    assert set(large.folder.rglob("*")) - before <= {large.folder / "small.yaml"}
    assert planned["shards"] == 20
    done = run(large, SHARDS)["stages"][0]["figures"]["stores"]["small"]
    for key in ("shape", "shard", "shards", "objects", "uncompressed_bytes"):
        assert planned[key] == done[key], key
    assert planned["stored_bytes"] == pytest.approx(done["bytes"], rel=0.1)


@pytest.mark.parametrize("command", ["plan", "prepare"])
def test_absurd_settings_are_refused(scene: SmallScene, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    bounds = "[400000, 5798500, 401300, 5800000]"
    grid = f"scenes.0.grid={{crs: 'EPSG:32633', resolution: 0.0001, bounds: {bounds}}}"
    assert "is `grid.resolution` in the units of `grid.crs`" in run(scene, grid, command=command, status=2).stderr
    assert (
        "prepare.shard: a shard's side is a multiple of 128"
        in run(scene, "prepare.shard=200", command=command, status=2).stderr
    )
    with monkeypatch.context() as patch:
        patch.setattr(storage, "free_bytes", lambda url: 1000)
        assert "0 MB are free there" in run(scene, command=command, status=2).stderr
    with monkeypatch.context() as patch:
        patch.setattr("jobs.plan.available_memory", lambda: 10**8)
        assert "at a time take about" in run(scene, command=command, status=2).stderr
    assert not (scene.folder / "work").exists()


# --- random splits


@pytest.mark.parametrize(("train", "validation"), [(0.2, 0.1), (40, 15), (0.2, 30)])
def test_a_random_split_meets_its_numbers_exactly_and_is_told_to_leak(
    scene: SmallScene, train: float, validation: float
) -> None:
    write_raster(scene.folder / "optical.tif", scene.optical)  # no pixel without data
    split = {"method": "random", "train": train, "validation": validation, "seed": 3}
    stage = run(scene, split=split)["stages"][0]
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    labels, codes = store.array("labels")[:], store.array("split")[:]
    assert ((codes == 0) == (labels == UNLABELLED)).all()
    for c in store.classes:
        own = labels == c.id
        n = int(own.sum())
        for subset, wanted in (("train", train), ("validation", validation)):
            number = round(wanted * n) if wanted < 1 else wanted
            assert (codes[own] == CODES[subset]).sum() == number  # type: ignore[index]  # a subset by name
    usable = store.array("valid/optical")[:].astype(bool)
    test, trained = (codes == CODES["test"]) & usable, (codes == CODES["train"]) & usable
    share = (test & near_any(np.pad(trained, 4), 4)).sum() / test.sum()
    assert stage["figures"]["overlap"]["small"] == pytest.approx(share)
    assert share > 0.3, "at 40 of 2,000 pixels of each class already"
    assert any("a random split leaks" in line for line in stage["lines"])
    assert any(f"{share:.2%} of test patches overlap a training patch" in line for line in stage["lines"])


def test_a_random_split_depends_on_its_seed_alone(scene: SmallScene) -> None:
    def codes(seed: int, shard: int) -> np.ndarray:
        run(scene, f"prepare.shard={shard}", split={"method": "random", "train": 0.2, "validation": 0.1, "seed": seed})
        return np.asarray(PatchStore(str(scene.folder / "work/stores/small.zarr")).array("split")[:])

    first = codes(0, 128)
    assert (codes(0, 256) == first).all()
    assert (codes(1, 128) != first).any()


# --- several scenes


@pytest.mark.parametrize("first", [0, 1])
def test_scenes_whose_files_hold_other_types_share_one(scene: SmallScene, first: int) -> None:
    """Whole metres here, resampled ones there: the limits are those of all training pixels, whichever comes first."""
    generator = np.random.default_rng(0)
    south = TRANSFORM * Affine.translation(0, 1000)
    for name, place in (("", TRANSFORM), ("south_", south)):
        write_raster(scene.folder / f"{name}optical.tif", scene.optical, transform=place, nodata=0)
        shape = (1, 150, 130) if not name else (1, 154, 134)
        height = generator.integers(100, 1000, shape).astype(np.int16)
        shift = Affine.translation(-1.5, -1.5) if name else Affine.identity()
        write_raster(scene.folder / f"{name}radar.tif", height, transform=place * shift)
        write_raster(scene.folder / f"{name}labels.tif", scene.truth[None], transform=place)
    config = scene.config()
    other = json.loads(json.dumps(config["scenes"][0]).replace(str(scene.folder) + "/", str(scene.folder) + "/south_"))
    other["name"] = "south"
    config["scenes"] = [config["scenes"][0], other][:: 1 if first == 0 else -1]
    run(scene, **config)
    values = []
    for name in ("small", "south"):
        store = PatchStore(str(scene.folder / f"work/stores/{name}.zarr"))
        assert store.array("sources/radar").dtype == np.float32
        chosen = store.samples(Window(0, 0, *store.shape))["train"] != UNLABELLED
        values.append(store.array("sources/radar")[0][chosen & store.array("valid/radar")[:].astype(bool)])
    fitted = json.loads((scene.folder / "work/scaling.json").read_text())["radar"]
    wanted = np.quantile(np.concatenate(values), [0.005, 0.995, 0.5], method="inverted_cdf")
    np.testing.assert_allclose([fitted["low"][0], fitted["high"][0], fitted["fill"][0]], wanted, rtol=2**-13)


# --- what sources may be


def test_a_finer_source_reaches_the_store_and_the_grid_may_be_coarser_than_all(scene: SmallScene) -> None:
    fine = np.random.default_rng(0).integers(1, 999, (1, 600, 520)).astype(np.uint16)
    write_raster(scene.folder / "radar.tif", fine, transform=TRANSFORM * Affine.scale(1 / 4))
    run(scene, "scenes.0.sources.radar.scale=4", SHARDS)
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    assert store.sources[1].scale == 4
    assert (store.array("sources/radar")[:] == fine).all()
    assert store.array("valid/radar").shape == (600, 520)
    assert run(scene, command="verify")["stores"][0]["whole"]


def test_a_source_that_lies_off_is_warned_of(scene: SmallScene) -> None:
    generator = np.random.default_rng(0)
    field = np.kron(generator.integers(0, 9, (80, 80)), np.ones((5, 5)))[:400, :400]
    noise = generator.normal(0, 0.1, (2, 400, 400))
    first, second = field + noise[0], np.roll(field, (2, -3), (0, 1)) + noise[1]
    for name, values in (("optical", first), ("radar", second)):
        write_raster(scene.folder / f"{name}.tif", (100 * values[None, :150, :130] + 500).astype(np.uint16))
    shift = run(scene)["stages"][0]
    found = shift["figures"]["stores"]["small"]["shifts"]["radar"]
    assert found["credible"]
    assert (found["dy"], found["dx"]) == pytest.approx((2, -3), abs=0.3)
    assert any("radar: lies" in line and "pixels off optical" in line for line in shift["lines"])


def test_stac_items_name_the_files(scene: SmallScene) -> None:
    """Two items side by side, with relative hrefs."""
    for number, columns in enumerate((slice(0, 70), slice(70, 130))):
        place = TRANSFORM * Affine.translation(columns.start, 0)
        write_raster(scene.folder / f"part{number}.tif", scene.optical[:, :, columns], transform=place, nodata=0)
    items = [
        {
            "type": "Feature", "stac_version": "1.0.0", "id": f"item{n}", "links": [],
            "properties": {"datetime": "2020-01-01T00:00:00Z"}, "geometry": None, "bbox": None,
            "assets": {"optical": {"href": f"./part{n}.tif"}},
        }
        for n in range(2)
    ]  # fmt: skip
    (scene.folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    config = scene.config()
    config["scenes"][0]["grid"] = {"crs": "EPSG:32633", "resolution": 10, "bounds": [400000, 5798500, 401300, 5800000]}
    stac = {"stac": {"url": str(scene.folder / "items.json"), "assets": ["optical"]}}
    config["scenes"][0]["sources"]["optical"] = stac
    run(scene, **config)
    store = PatchStore(str(scene.folder / "work/stores/small.zarr"))
    valid = store.array("valid/optical")[:].astype(bool)
    assert (valid == (scene.optical != 0).all(axis=0)).all()
    assert (store.array("sources/optical")[:][:, valid] == scene.optical[:, valid]).all()
    config["scenes"][0]["sources"]["optical"] = {"stac": {**stac["stac"], "assets": ["nir"]}}
    assert "item 'item0' has no asset 'nir'; it has optical" in run(scene, status=2, **config).stderr


def test_the_summary_counts_every_class_in_every_subset(scene: SmallScene) -> None:
    lines = run(scene)["stages"][0]["lines"]
    counts = json.loads((scene.folder / "work/split.json").read_text())["counts"]
    for c in CLASSES:
        (line,) = [line for line in lines if line.split()[:1] == [c["name"]]]
        assert [int(n.replace(",", "")) for n in line.split()[1:]] == [counts[s][c["name"]] for s in counts]


@pytest.fixture
def address(scene: SmallScene) -> Iterator[str]:
    with served(scene.folder) as address:
        yield address


def test_files_are_read_from_the_web(scene: SmallScene, address: str) -> None:
    """Rasters, and a STAC item whose asset is named beside it."""
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "item", "links": [], "geometry": None, "bbox": None,
        "properties": {"datetime": "2020-01-01T00:00:00Z"}, "assets": {"optical": {"href": "./optical.tif"}},
    }  # fmt: skip
    (scene.folder / "item.json").write_text(json.dumps(item))
    run(scene, f"workspace={scene.folder / 'local'}")
    config = scene.config()
    sources = config["scenes"][0]["sources"]
    sources["optical"] = {"stac": {"url": f"{address}/item.json", "assets": ["optical"]}}
    sources["radar"]["url"] = f"{address}/radar.tif"
    config["scenes"][0]["labels"]["url"] = f"{address}/labels.tif"
    run(scene, **config)
    assert objects(scene) == objects(scene, "local")
    sources["radar"]["url"] = f"{address}/none.tif"
    assert f"{address}/none.tif: no such file" in run(scene, status=2, **config).stderr
