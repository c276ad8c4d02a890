"""mibf bench map --tiles: what the driver takes for a map of many tiles in which there is nothing to do.

It is the driver of `mibf map`: fingerprints, plan, ledger, Ray Data's workers and their mappers. A tile reads, computes
and writes nothing. The last one fails on purpose, so that a map without pixels is not published; the second run, which is to
leave failed tiles alone, finds nothing due.
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

from jobs.bench.bare_scene import bare_scene
from jobs.bench.map import check_one_machine
from jobs.bench.map_memory import alone, leave_ray
from jobs.bench.memory import peak
from jobs.bench.network import machine
from jobs.config import Config
from jobs.map import Request, map_scenes
from jobs.progress import say
from jobs.scene_maps import Recipe, SceneMap
from jobs.stages import TilesFailedError
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline import storage
from pipeline.lease import Lease
from pipeline.mapper import Job
from pipeline.predict import TileInput, TileResult
from pipeline.store import PatchStore
from pipeline.tiles import Tile

#: Side of the tiles in pixels, and `map.workers`, that are measured.
TILE, WORKERS = 512, (0, 1, 2)
#: How many times fewer tiles the smaller map has, which the larger one is compared with.
FEWER = 10


@dataclass(frozen=True)
class Run:
    """A map of so many tiles, and the run after it."""

    tiles: int
    workers: int
    plan: float  #: seconds to plan the tiles with their fingerprints
    milliseconds: float  #: a tile, from the first one's beginning to the last one's end
    ratio: float  #: of these to those of the smaller map with as many workers
    grown: int  #: bytes that the driver's process grew by, at the most
    ledger_bytes: float  #: a tile
    segments: int  #: of the ledger
    nothing_due: float  #: seconds for a run that finds nothing to do, imports apart


def bench_tiles(tiles: int) -> list[Run]:
    """Measure a map of about so many tiles, 100 or more, and one of a tenth of them; each in a process of its own.

    Raises:
        InputError: they are too few, or workers would be on other machines.
    """
    check_one_machine()
    if tiles < 100:
        raise InputError(f"--tiles {tiles}: give 100 or more.")
    runs: list[Run] = []
    for count in (tiles // FEWER, tiles):
        side = TILE * round(math.sqrt(count))
        for workers in WORKERS:
            say(f"{count:,} tiles, {workers} workers")
            with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
                config = bare_scene(Path(folder), shape_yx=(side, side), tile=TILE, filled=False)
                config = config.model_copy(
                    update={"map": config.map.model_copy(update={"workers": workers, "drift": "ignore"})}
                )
                first = alone(_mapped, config)
                nothing_due = alone(_nothing_due, config)
            smaller = next((run.milliseconds for run in runs if run.workers == workers), first.milliseconds)
            runs.append(replace(first, ratio=first.milliseconds / smaller, nothing_due=nothing_due))
    return runs


def _mapped(config: Config) -> Run:
    """Map the tiles; what was seen in this process and in the ledger."""
    before = psutil.Process().memory_info().rss
    _map(config)
    grown = peak() - before
    workspace = Workspace.of(config)
    scene = SceneMap(Recipe.of(config, workspace), workspace, config.scenes[0])
    started = time.monotonic()
    tiles = len(scene.planned)
    plan = time.monotonic() - started
    events = scene.ledger.table().select(["started", "finished"]).drop_null().to_pydict()
    span = max(events["finished"]) - min(events["started"])
    sizes = storage.sizes(scene.ledger_url).values()
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
    """The seconds of a run that finds nothing to do."""
    ledger = SceneMap(Recipe.of(config, workspace := Workspace.of(config)), workspace, config.scenes[0]).ledger_url
    before = storage.sizes(ledger)
    started = time.monotonic()
    _map(config)
    seconds = time.monotonic() - started
    if storage.sizes(ledger) != before:
        raise RuntimeError("the second run found tiles to do")
    return seconds


def _map(config: Config) -> None:
    """Map what is due and was not tried before."""
    try:
        with suppress(TilesFailedError):  # the last tile, as it should
            map_scenes(config, Workspace.of(config), "", Lease(), request=Request(max_attempts=1), predictor=Idle)
    finally:
        leave_ray()


class Idle:
    """Reads, computes and writes nothing, and fails on a scene's last tile."""

    rows = 1

    def __init__(self, job: Job) -> None:
        """A worker makes one of a job."""

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """Nothing."""
        if (tile.window.y + tile.window.height, tile.window.x + tile.window.width) == store.shape:
            raise RuntimeError("this tile is meant to fail")
        return TileInput((), np.zeros((0, 0), np.bool_), np.zeros((0, 0), np.uint8))

    def compute(self, tile: TileInput) -> TileResult:
        """Nothing."""
        del tile
        return {}


def table(runs: Sequence[Run]) -> str:
    """The runs as text; columns are told in `Run`."""
    heads = ("tiles", "workers", "ms a tile", "ratio", "plan s", "driver +MB", "ledger B", "segments", "none due s")
    lines = [machine(), "", "".join(f"{head:>12}" for head in heads)]
    for r in runs:
        lines.append(
            f"{r.tiles:>12,}{r.workers:>12}{r.milliseconds:>12.2f}{r.ratio:>12.2f}{r.plan:>12.2f}{r.grown / 1e6:>12,.0f}"
            f"{r.ledger_bytes:>12,.0f}{r.segments:>12,}{r.nothing_due:>12.2f}"
        )
    lines.append("ratios are of the time a tile to the smaller map's with as many workers; the ledger's bytes are a tile's")
    return "\n".join(lines)


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """The runs for machines."""
    return {"machine": machine(), "runs": [asdict(run) for run in runs]}
