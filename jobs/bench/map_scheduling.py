"""mibf bench map --tiles: scheduling overhead of a map with many empty tiles.

It runs the driver of `mibf map`: fingerprints, plan, ledger, Ray Data workers and their tile mappers. A tile reads,
computes and writes nothing. The last tile fails on purpose, so that the empty map is not published; the second run skips
failed tiles and finds no tiles to map.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from jobs.bench.harness.processes import run_in_subprocess
from jobs.bench.harness.stub_workspace import stub_workspace
from jobs.bench.harness.working_set import peak
from jobs.bench.map import check_one_machine
from jobs.bench.map_memory import leave_ray
from jobs.bench.network import machine
from jobs.config.config import Config
from jobs.map.request import TileRequest
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.map.stage import map_scenes
from jobs.runtime.progress import info
from jobs.workflow.errors import TilesFailedError
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.grid import Tile
from pipeline.io import checksums
from pipeline.io.lease import Lease
from pipeline.maps.predictor import TileInput, TileResult
from pipeline.maps.tile_mapper import MapJob
from pipeline.store.patch_store import PatchStore

#: Tile side in pixels, and values of `map.workers` to measure.
TILE, WORKERS = 512, (0, 1, 2)
#: Ratio of the tile counts of the two maps that are compared.
FEWER = 10


@dataclass(frozen=True)
class Run:
    """Measurements of a map with this many tiles, and of the run after it."""

    tiles: int
    workers: int
    plan: float  #: seconds to plan the tiles with their fingerprints
    milliseconds: float  #: per tile, from the start of the first tile to the end of the last
    ratio: float  #: of `milliseconds` to the smaller map with the same number of workers
    grown: int  #: peak growth of the driver process, in bytes
    ledger_bytes: float  #: per tile
    segments: int  #: number of ledger segments
    nothing_due: float  #: seconds for a run with no tiles to map, without imports


@dataclass(frozen=True)
class SchedulingBench:
    """The maps of all sizes."""

    runs: list[Run]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return table(self.runs).split("\n")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "runs": [asdict(run) for run in self.runs]}


def bench_tiles(tiles: int) -> SchedulingBench:
    """Measure a map with about this many tiles (at least 100) and one with a tenth of them, each in a separate process.

    Raises:
        InputError: too few tiles, or `RAY_ADDRESS` names a cluster.
    """
    check_one_machine()
    if tiles < 100:
        raise InputError(f"--tiles {tiles}: must be at least 100.")
    runs: list[Run] = []
    for count in (tiles // FEWER, tiles):
        side = TILE * round(math.sqrt(count))
        for workers in WORKERS:
            info(f"{count:,} tiles, {workers} workers")
            with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
                config = stub_workspace(Path(folder), shape_yx=(side, side), tile=TILE, filled=False)
                config = config.model_copy(
                    update={"map": config.map.model_copy(update={"workers": workers, "drift": "ignore"})}
                )
                first = run_in_subprocess(_mapped, config)
                nothing_due = run_in_subprocess(_nothing_due, config)
            smaller = next((run.milliseconds for run in runs if run.workers == workers), first.milliseconds)
            runs.append(replace(first, ratio=first.milliseconds / smaller, nothing_due=nothing_due))
    return SchedulingBench(runs)


def _mapped(config: Config) -> Run:
    """Map the tiles; return the measurements of this process and of the ledger."""
    before = psutil.Process().memory_info().rss
    _map(config)
    grown = peak() - before
    workspace = Workspace.of(config)
    scene = SceneMap(MapSpec.of(config, workspace), workspace, config.scenes[0])
    started = time.monotonic()
    tiles = len(scene.planned)
    plan = time.monotonic() - started
    events = scene.ledger.table().select(["started", "finished"]).drop_null().to_pydict()
    span = max(events["finished"]) - min(events["started"])
    sizes = checksums.object_sizes(scene.ledger_url).values()
    return Run(
        tiles=tiles,
        workers=config.map.workers,
        plan=plan,
        milliseconds=1000 * span.total_seconds() / tiles,
        ratio=1.0,
        grown=grown,
        ledger_bytes=sum(sizes) / tiles,
        segments=len(sizes),
        nothing_due=0.0,
    )


def _nothing_due(config: Config) -> float:
    """Return the seconds of a run with no tiles to map."""
    ledger = SceneMap(MapSpec.of(config, workspace := Workspace.of(config)), workspace, config.scenes[0]).ledger_url
    before = checksums.object_sizes(ledger)
    started = time.monotonic()
    _map(config)
    seconds = time.monotonic() - started
    if checksums.object_sizes(ledger) != before:
        raise RuntimeError("the second run found tiles to map")
    return seconds


def _map(config: Config) -> None:
    """Map the tiles that were not tried before."""
    try:
        with suppress(TilesFailedError):  # the last tile fails on purpose
            map_scenes(config, Workspace.of(config), "", Lease(), request=TileRequest(max_attempts=1), predictor=Idle)
    finally:
        leave_ray()


class Idle:
    """Predictor that reads, computes and writes nothing, and fails on a scene's last tile."""

    rows = 1

    def __init__(self, job: MapJob) -> None:
        """Ignore the job; workers construct predictors from one."""

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """Return an empty tile."""
        if (tile.window.y + tile.window.height, tile.window.x + tile.window.width) == store.shape:
            raise RuntimeError("this tile is meant to fail")
        return TileInput((), np.zeros((0, 0), np.bool_), np.zeros((0, 0), np.uint8))

    def compute(self, tile: TileInput) -> TileResult:
        """Return no products."""
        del tile
        return {}


def table(runs: Sequence[Run]) -> str:
    """Format the runs as text; see `Run` for the columns."""
    heads = ("tiles", "workers", "ms/tile", "ratio", "plan s", "driver +MB", "ledger B", "segments", "no-op run s")
    lines = [machine(), "", "".join(f"{head:>12}" for head in heads)]
    for r in runs:
        lines.append(
            f"{r.tiles:>12,}{r.workers:>12}{r.milliseconds:>12.2f}{r.ratio:>12.2f}{r.plan:>12.2f}{r.grown / 1e6:>12,.0f}"
            f"{r.ledger_bytes:>12,.0f}{r.segments:>12,}{r.nothing_due:>12.2f}"
        )
    lines.append("ratios: time per tile to the smaller map with the same number of workers; ledger bytes are per tile")
    return "\n".join(lines)
