"""mibf bench map --memory: the mapping stage's peak memory over the scene's size.

In the network's place is one that is next to none, so that large scenes end in minutes; all around it is the
product's own: stores are read and scaled, products encoded and written, the map is checked, published and described.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jobs.bench.bare_scene import bare_scene
from jobs.bench.map import MapsElsewhere, check_one_machine, check_side
from jobs.bench.network import machine
from jobs.config import Config
from jobs.map import map_scenes
from jobs.progress import say
from jobs.resources import PeakMemory
from jobs.workspace import Workspace
from pipeline.labels import UNLABELLED
from pipeline.lease import Lease
from pipeline.mapper import Job, Predictor
from pipeline.predict import TileInput, TileResult
from pipeline.store import PatchStore
from pipeline.tiles import Tile

#: Sides of the scenes in pixels, and `map.workers`, that are measured; side of the tiles.
SIDES, WORKERS, TILE = (2048, 4096, 8192, 16384), (0, 1), 512
#: Seconds between two looks: the smallest scene is mapped in a few.
INTERVAL = 0.25

Found = TypeVar("Found")


@dataclass(frozen=True)
class Peak:
    """The stage's memory for one scene."""

    side: int  #: of the scene, in pixels
    workers: int
    bytes: int  #: at the most, of all its processes, Ray's included
    ratio: float  #: to that of the first scene with as many workers
    seconds: float  #: of the whole stage
    publishing: float  #: share of publishing, Ray's start apart
    stored_bytes: int  #: of the store


def bench_memory(sides: Sequence[int]) -> list[Peak]:
    """Measure scenes of these sides, multiples of 64 pixels, each mapping in a process of its own; in temporary files.

    Raises:
        InputError: a side cannot be, or workers would be on other machines.
    """
    check_one_machine()
    for side in sides:
        check_side(side)
    peaks: list[Peak] = []
    for side in sides:
        with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
            say(f"{side} x {side} pixels")
            config = bare_scene(Path(folder), shape_yx=(side, side), tile=TILE, filled=True)
            peaks += [alone(_measured, config, workers) for workers in WORKERS]
    first = {peak.workers: peak.bytes for peak in reversed(peaks)}
    return [replace(peak, ratio=peak.bytes / first[peak.workers]) for peak in peaks]


def alone(work: Callable[..., Found], *given: Any) -> Found:
    """What a piece of work gives, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def _measured(config: Config, workers: int) -> Peak:
    config = config.model_copy(update={"map": config.map.model_copy(update={"workers": workers})})
    workspace = Workspace.of(config)
    store = PatchStore(workspace.store(config.scenes[0].name))
    stored = sum(path.stat().st_size for path in Path(store.url).rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory(dir=workspace.url) as folder:
        elsewhere = MapsElsewhere(workspace.url, workspace.run, folder)
        started = time.monotonic()
        try:
            with PeakMemory(interval=INTERVAL) as peak:
                figures = map_scenes(config, elsewhere, "", Lease(), predictor=Larger).figures
        finally:
            leave_ray()
    return Peak(store.shape[0], workers, peak.bytes, 1.0, time.monotonic() - started, figures["publishing"], stored)


def leave_ray() -> None:
    """End the Ray that this process has started, if it has."""
    from jobs import cluster

    cluster.close()


class Larger:
    """Takes each pixel for the class of the source whose first band is the larger one, for as sure as that band is large.

    It holds the network and reads as it does.
    """

    rows = 1

    def __init__(self, job: Job) -> None:
        self.products = job.products
        self.network: Predictor = replace(job, predictor=None).make_predictor()

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """As for the network."""
        return self.network.read(store, tile)

    def compute(self, tile: TileInput) -> TileResult:
        """The products `class` and `confidence`."""
        height, width = tile.wanted.shape
        bands = []
        for source in tile.sources:
            halo = (source.shape[1] - height) // 2
            bands.append(source[0, halo : halo + height, halo : halo + width])
        ids = np.argmax(bands, axis=0).astype(np.uint8) + np.uint8(1)
        found = {
            "class": np.where(tile.wanted, ids, np.uint8(UNLABELLED)),
            "confidence": np.where(tile.wanted, np.max(bands, axis=0), np.nan),
        }
        return {p.name: (found[p.name] if p.name == "class" else p.encode(found[p.name]))[None] for p in self.products}


def table(peaks: Sequence[Peak]) -> str:
    """The peaks as text; columns are told in `Peak`."""
    lines = [machine(), "", f"{'pixels':<16}{'workers':>8}{'peak memory':>14}{'ratio':>8}{'seconds':>10}{'publishing':>12}"]
    lines += [
        f"{f'{p.side} x {p.side}':<16}{p.workers:>8}{p.bytes / 1e6:>11,.0f} MB{p.ratio:>8.2f}{p.seconds:>10,.0f}"
        f"{p.publishing:>12.0%}"
        for p in peaks
    ]
    lines.append("ratios are to the first scene with as many workers; the time is that of everything but a network")
    return "\n".join(lines)


def as_json(peaks: Sequence[Peak]) -> dict[str, Any]:
    """The peaks for machines."""
    return {"machine": machine(), "peaks": [asdict(peak) for peak in peaks]}
