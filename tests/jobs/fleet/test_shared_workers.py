"""Workers that runs share: two runs at a time, dead processes, failed devices. The GPUs are logical."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.config.config import ResourcesSection
from jobs.fleet.shared_workers import SharedWorkers
from jobs.workflow.errors import StageError
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.grid import Tile, tile_grid
from pipeline.maps.map_store import MapStore
from pipeline.maps.outcome import TileOutcome
from pipeline.maps.products import product
from pipeline.maps.tile_mapper import MapJob
from pipeline.store.patch_store import PatchStore
from tests.support.scenes import SmallScene

pytestmark = pytest.mark.faults
CLASS = product("class")
SIDE = 64


def predictor(disturb: Callable[[str, str], None]) -> Callable[[MapJob], Any]:
    """A predictor that calls a function with the name of its device and a tile before it computes it; sent by value."""

    def make(_: MapJob) -> Any:
        from jobs.runtime.ray_cluster import assigned_device
        from pipeline.maps.predictor import TileInput

        class Predictor:
            rows = 64

            def read(self, _: PatchStore, tile: Tile) -> TileInput:
                shape = (tile.window.height, tile.window.width)
                corner = np.array([[[tile.window.y, tile.window.x]]], np.float32)
                return TileInput((corner,), np.ones(shape, bool), np.ones(shape, np.uint8))

            def compute(self, tile: TileInput) -> dict[str, Any]:
                y, x = (int(value) for value in tile.sources[0].ravel())
                disturb(assigned_device().name, f"y{y}_x{x}")
                return {"class": np.ones((1, *tile.wanted.shape), np.uint8)}

        return Predictor()

    return make


def make_job(prepared: tuple[SmallScene, Workspace], url: Path, make: Callable[[MapJob], Any] | None) -> MapJob:
    store = PatchStore(prepared[1].store("small"))
    MapStore.create(str(url), store=store, products=[CLASS], tile=SIDE)
    return MapJob(
        model=str(url.parent / "none"),
        digest="",
        stores={"small": store.url},
        map_stores={"small": str(url)},
        products=(CLASS,),
        precision="float32",
        priors="trained",
        mc_samples=2,
        seed=0,
        missing="declared",
        predictor=make,
    )


@pytest.fixture
def tiles(prepared: tuple[SmallScene, Workspace]) -> list[Tile]:
    return tile_grid("small", PatchStore(prepared[1].store("small")).shape, SIDE)


@pytest.mark.usefixtures("two_gpus")
def test_runs_at_a_time_share_workers_of_which_some_die(
    prepared: tuple[SmallScene, Workspace], tiles: list[Tile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(device: str, tile: str) -> None:
        del device
        if tile == "y64_x64":
            os._exit(1)

    shared = SharedWorkers(4)

    def run(name: str) -> list[TileOutcome]:
        outcomes: list[TileOutcome] = []
        job = make_job(prepared, tmp_path / name, predictor(die if name == "a" else lambda *_: None))
        shared.map(job, tiles, outcomes.append, isolated=False, workers=1, resources=ResourcesSection())
        return outcomes

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, ["a", "b"])
    assert {outcome.tile for outcome in one} == {tile for tile in tiles if tile.key != "small/y64_x64"}
    assert {outcome.tile for outcome in other} == set(tiles)
    assert not [outcome.cause for outcome in (*one, *other) if outcome.cause]
    assert len({outcome.worker for outcome in other}) <= 2
    printed = capsys.readouterr().err
    assert printed.count("4 runs at a time would use 4 workers; they share the 2 that the cluster holds") == 1


@pytest.mark.usefixtures("two_gpus")
def test_failed_device_is_given_up_for_all_runs(
    prepared: tuple[SmallScene, Workspace], tiles: list[Tile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(device: str, tile: str) -> None:
        del tile
        if device.endswith("GPU 0"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    shared, outcomes = SharedWorkers(2), list[TileOutcome]()
    for name in ("a", "b", "c"):
        job = make_job(prepared, tmp_path / name, predictor(fail))
        shared.map(job, tiles, outcomes.append, isolated=True, workers=1, resources=ResourcesSection())
    assert len(outcomes) == 3 * len(tiles)
    assert not [outcome.cause for outcome in outcomes if outcome.cause]
    assert capsys.readouterr().err.count("GPU 0 failed 2 times in a row") <= 1

    def fail_everywhere(device: str, tile: str) -> None:
        fail(f"{device} GPU 0", tile)

    job = make_job(prepared, tmp_path / "d", predictor(fail_everywhere))
    with pytest.raises(StageError, match="every device of this map failed"):
        shared.map(job, tiles, outcomes.append, isolated=True, workers=1, resources=ResourcesSection())


@pytest.mark.usefixtures("two_gpus")
def test_error_in_loading_a_model_is_that_of_its_run_only(
    prepared: tuple[SmallScene, Workspace], tiles: list[Tile], tmp_path: Path
) -> None:
    shared, outcomes = SharedWorkers(1), list[TileOutcome]()
    with pytest.raises(InputError, match="none"):
        shared.map(
            make_job(prepared, tmp_path / "a", None),
            tiles,
            outcomes.append,
            isolated=False,
            workers=1,
            resources=ResourcesSection(),
        )
    job = make_job(prepared, tmp_path / "b", predictor(lambda *_: None))
    shared.map(job, tiles, outcomes.append, isolated=False, workers=1, resources=ResourcesSection())
    assert len(outcomes) == len(tiles)
