"""Maps on Ray workers of which some have a failed device. The GPUs are logical: Ray assigns them, nothing runs on them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from jobs.map.ray_workers import map_on_ray
from jobs.runtime.ray_cluster import assigned_device
from jobs.runtime.worker_resources import WorkerResources
from jobs.workflow.errors import StageError
from jobs.workflow.workspace import Workspace
from pipeline.grid import Tile, tile_grid
from pipeline.maps.map_store import MapStore
from pipeline.maps.outcome import TileOutcome
from pipeline.maps.products import product
from pipeline.maps.tile_mapper import MapJob
from pipeline.store.patch_store import PatchStore
from tests.support.scenes import SmallScene

pytestmark = pytest.mark.slow
CLASS = product("class")
SIDE = 64


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A local Ray with two CPUs and two logical GPUs."""
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


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


def mapped(
    prepared: tuple[SmallScene, Workspace], folder: Path, workers: int, is_failed: Callable[[str], bool]
) -> tuple[list[Tile], list[TileOutcome]]:
    """Map the small scene; return its tiles and the outcomes."""
    store = PatchStore(prepared[1].store("small"))
    MapStore.create(str(folder / "map.zarr"), store=store, products=[CLASS], tile=SIDE)
    failures = folder / "failures"
    failures.mkdir()
    job = MapJob(
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
        predictor=failing_on(is_failed, failures),
    )
    tiles = tile_grid("small", store.shape, SIDE)
    outcomes: list[TileOutcome] = []
    map_on_ray(job, tiles, WorkerResources(workers, cpus=1, gpus=1), each=outcomes.append)
    return tiles, outcomes


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


@pytest.mark.usefixtures("two_gpus")
def test_map_without_any_working_device_ends_and_no_tile_fails(
    prepared: tuple[SmallScene, Workspace], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"every device of this map failed \(.*GPU .\)\. .*none counts as failed"):
        mapped(prepared, tmp_path, 1, lambda _: True)


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
