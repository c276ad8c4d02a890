"""Workers of maps: how they overlap tasks, and failed devices. The GPUs are logical: nothing runs on them."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from jobs.map import ray_workers
from jobs.map.device_health import WORKER_REPLACED
from jobs.map.ray_workers import map_on_ray
from jobs.runtime.ray_cluster import AssignedDevice, assigned_device
from jobs.runtime.worker_resources import WorkerResources
from jobs.workflow.errors import StageError
from jobs.workflow.workspace import Workspace
from pipeline.grid import Tile, tile_grid
from pipeline.maps.map_store import MapStore
from pipeline.maps.outcome import TileOutcome
from pipeline.maps.predictor import TileInput
from pipeline.maps.products import product
from pipeline.maps.tile_mapper import MapJob
from pipeline.store.patch_store import PatchStore
from tests.support.scenes import SmallScene

CLASS = product("class")
SIDE = 64


def failing_on(is_failed: Callable[[str], bool], failures: Path) -> Callable[[MapJob], Any]:
    """A predictor that fails on the devices of these names, as torch does after a sticky error; sent to workers by value.

    Other devices wait until `failures` holds two files, one for each failure: otherwise they might map all tiles themselves.
    """

    def make(_: MapJob) -> Any:
        from jobs.runtime.ray_cluster import assigned_device as assigned
        from pipeline.maps.predictor import TileInput
        from tests.support.waiting import await_

        class Predictor:
            rows = 64

            def read(self, _: PatchStore, tile: Tile) -> TileInput:
                shape = (tile.window.height, tile.window.width)
                return TileInput((np.zeros((1, *shape), np.float32),), np.ones(shape, bool), np.ones(shape, np.uint8))

            def compute(self, tile: TileInput) -> dict[str, Any]:
                if is_failed(assigned().name):
                    (failures / f"{os.getpid()}").touch()
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                await_(lambda: len(list(failures.iterdir())) >= 2)
                return {"class": np.ones((1, *tile.wanted.shape), np.uint8)}

        return Predictor()

    return make


def job_on(prepared: tuple[SmallScene, Workspace], folder: Path, predictor: Callable[[MapJob], Any]) -> MapJob:
    """A job on the small scene, with a map store that it creates in the folder."""
    store = PatchStore(prepared[1].store("small"))
    MapStore.create(str(folder / "map.zarr"), store=store, products=[CLASS], tile=SIDE)
    return MapJob(
        model="",
        digest="",
        stores={"small": store.url},
        map_stores={"small": str(folder / "map.zarr")},
        products=(CLASS,),
        precision="float32",
        priors="trained",
        mc_samples=2,
        seed=0,
        missing="declared",
        predictor=predictor,
    )


def mapped(
    prepared: tuple[SmallScene, Workspace],
    folder: Path,
    workers: int,
    is_failed: Callable[[str], bool] | None,
    *,
    per_gpu: int = 1,
) -> tuple[list[Tile], list[TileOutcome]]:
    """Map the small scene, on devices of which some fail, or with None none; return its tiles and the outcomes."""
    failures = folder / "failures"
    failures.mkdir()
    if is_failed is None:
        for number in range(2):  # nothing to wait for
            (failures / str(number)).touch()
    job = job_on(prepared, folder, failing_on(is_failed or (lambda _: False), failures))
    tiles = tile_grid("small", PatchStore(job.stores["small"]).shape, SIDE)
    outcomes: list[TileOutcome] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_workers, "_steps", lambda *_: ray_workers.STEPS)  # tasks are left for a device that has failed
        map_on_ray(job, tiles, WorkerResources(workers, cpus=1, gpus=1, per_gpu=per_gpu), each=outcomes.append)
    return tiles, outcomes


class SteppedPredictor:
    """Computes a tile once the next one has been read, and fails on request, as torch does after a sticky error."""

    rows = 64

    def __init__(self) -> None:
        self.reads, self.computing, self.most_computing = 0, 0, 0
        self.read_two = threading.Event()
        self.fails = False

    def read(self, _: PatchStore, tile: Tile) -> TileInput:
        shape = (tile.window.height, tile.window.width)
        self.reads += 1
        if self.reads == 2:
            self.read_two.set()
        return TileInput((), np.ones(shape, bool), np.ones(shape, np.uint8))

    def compute(self, tile: TileInput) -> dict[str, Any]:
        self.computing += 1
        self.most_computing = max(self.computing, self.most_computing)
        assert self.read_two.wait(timeout=30), "the next task's tile was not read meanwhile"
        self.computing -= 1
        if self.fails:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return {"class": np.ones((1, *tile.wanted.shape), np.uint8)}


@pytest.fixture
def worker(prepared: tuple[SmallScene, Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ray_workers._Worker:
    """A worker in this process, outside Ray."""
    here = AssignedDevice("node", "this process", torch.device("cpu"))
    monkeypatch.setattr(ray_workers.ray_cluster, "assigned_device", lambda: here)
    context = SimpleNamespace(was_current_actor_reconstructed=False)
    monkeypatch.setattr(ray_workers.ray, "get_runtime_context", lambda: context)
    return ray_workers._Worker(job_on(prepared, tmp_path, lambda _: SteppedPredictor()), threads=1)


def run_two_tasks(worker: ray_workers._Worker) -> list[dict[str, Any]]:
    """Run two tasks of one tile at the same time, as Ray does; return their rows."""
    tiles = tile_grid("small", (2 * SIDE, SIDE), SIDE)
    tasks = [
        {"scene": np.array([t.scene])} | {n: np.array([getattr(t.window, n)]) for n in ("y", "x", "height", "width")}
        for t in tiles
    ]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(worker._run, tasks))
    return [{name: values[0] for name, values in rows.items()} for rows in found]


def test_tile_of_the_next_task_is_read_while_a_tile_is_computed(worker: ray_workers._Worker) -> None:
    outcomes = run_two_tasks(worker)
    assert [outcome["cause"] for outcome in outcomes] == ["", ""]
    assert all(outcome["checksum"] for outcome in outcomes)
    predictor: Any = worker.mapper.predictor
    assert (predictor.reads, predictor.most_computing) == (2, 1)


def test_tile_that_was_read_when_the_device_failed_is_returned_untried(worker: ray_workers._Worker) -> None:
    predictor: Any = worker.mapper.predictor
    predictor.fails = True
    outcomes = run_two_tasks(worker)
    assert all(outcome["device_error"] for outcome in outcomes)
    assert sorted(bool(outcome["put_back"]) for outcome in outcomes) == [False, True]
    assert [outcome["cause"] == "" for outcome in outcomes] == [bool(outcome["put_back"]) for outcome in outcomes]


@pytest.mark.parametrize(
    ("readers", "tiles", "share", "steps"),
    [
        (0, 16, WorkerResources(2, cpus=4, gpus=0), 3),
        (0, 1, WorkerResources(2, cpus=4, gpus=0), 3),
        (2, 1, WorkerResources(2, cpus=4, gpus=0), 2),
        (0, 16, WorkerResources(2, cpus=16, gpus=1), 3),  # tasks of several tiles hold those that are read ahead
        (0, 1, WorkerResources(2, cpus=16, gpus=1), 15),
        (2, 1, WorkerResources(2, cpus=16, gpus=1), 4),
    ],
)
def test_worker_has_tasks_for_the_tiles_that_it_reads_ahead(
    readers: int, tiles: int, share: WorkerResources, steps: int
) -> None:
    assert ray_workers._steps(readers, tiles, share) == steps


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_failed_device_is_given_up_and_no_tile_fails(
    prepared: tuple[SmallScene, Workspace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles, outcomes = mapped(prepared, tmp_path, 2, lambda name: name.endswith("GPU 0"))
    assert Counter(outcome.tile for outcome in outcomes if not outcome.cause).keys() == set(tiles)
    assert not [outcome.cause for outcome in outcomes if outcome.cause]
    reported = capsys.readouterr().err
    assert reported.count("GPU 0 failed 2 times in a row (RuntimeError: CUDA error: an illegal memory access") == 1
    assert "the map continues with 1 worker" in reported


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_workers_that_share_a_gpu_map_all_tiles(prepared: tuple[SmallScene, Workspace], tmp_path: Path) -> None:
    tiles, outcomes = mapped(prepared, tmp_path, 2, None, per_gpu=2)
    assert {outcome.tile for outcome in outcomes if not outcome.cause} == set(tiles)


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_map_without_any_working_device_ends_and_no_tile_fails(
    prepared: tuple[SmallScene, Workspace], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"every device of this map failed \(.*GPU .\)\. .*none counts as failed"):
        mapped(prepared, tmp_path, 1, lambda _: True)


def dying_once(folder: Path) -> Callable[[MapJob], Any]:
    """A predictor whose first process kills itself when it has read a tile, as the system does without memory."""

    def make(_: MapJob) -> Any:
        class Predictor(SteppedPredictor):
            def compute(self, tile: TileInput) -> dict[str, Any]:
                if not (folder / "killed").exists():
                    (folder / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return {"class": np.ones((1, *tile.wanted.shape), np.uint8)}

        return Predictor()

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_worker_that_died_is_reported_though_all_tiles_are_mapped(
    prepared: tuple[SmallScene, Workspace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_on(prepared, tmp_path, dying_once(tmp_path))
    tiles = tile_grid("small", PatchStore(job.stores["small"]).shape, SIDE)
    outcomes: list[TileOutcome] = []
    map_on_ray(job, tiles, WorkerResources(1, cpus=1, gpus=1), each=outcomes.append)
    assert {outcome.tile for outcome in outcomes if not outcome.cause} == set(tiles)
    assert capsys.readouterr().err.count(WORKER_REPLACED) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_device_of_a_worker_is_the_one_that_ray_assigned() -> None:
    @ray.remote(num_cpus=0)
    def asked(sees_gpus: bool) -> tuple[str, str]:
        import torch

        torch.cuda.is_available = lambda: sees_gpus  # type: ignore[method-assign]  # in a process of its own
        found = assigned_device()
        return found.name, str(found.device)

    name, device = ray.get(asked.options(num_gpus=1).remote(True))
    assert ("GPU" in name, device) == (True, "cuda:0"), "Ray shows it only its own GPU"
    name, device = ray.get(asked.remote(True))
    assert ("GPU" in name, device) == (False, "cpu"), "it sees GPUs, but none is assigned to it"
    assert ray.get(asked.options(num_gpus=1).remote(False))[1] == "cpu"
