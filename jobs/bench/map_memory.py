"""mibf bench map --memory: peak memory of the map stage against scene size.

A trivial predictor replaces the network, so that large scenes finish in minutes. Everything else is the real stage:
stores are read and normalized, products encoded and written, the map is checked, published and described.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jobs.bench.harness.processes import run_in_subprocess
from jobs.bench.harness.stub_workspace import stub_workspace
from jobs.bench.map import MapsElsewhere, check_one_machine, check_side
from jobs.bench.network import machine
from jobs.config.config import Config
from jobs.map.stage import map_scenes
from jobs.runtime.memory import PeakMemory
from jobs.runtime.progress import info
from jobs.workflow.workspace import Workspace
from pipeline.codes import UNLABELLED
from pipeline.grid import Tile
from pipeline.io.lease import Lease
from pipeline.maps.predictor import TileInput, TileResult
from pipeline.maps.tile_mapper import MapJob, Predictor
from pipeline.store.patch_store import PatchStore

#: Scene sides in pixels and values of `map.workers` to measure; tile side in pixels.
SIDES, WORKERS, TILE = (2048, 4096, 8192, 16384), (0, 1), 512
#: Seconds between memory samples: the smallest scene is mapped in a few seconds.
INTERVAL = 0.25
T = TypeVar("T")


@dataclass(frozen=True)
class Peak:
    """Memory of the stage for one scene."""

    side: int  #: of the scene, in pixels
    workers: int
    bytes: int  #: peak of all its processes, including Ray's
    ratio: float  #: to the first scene with the same number of workers
    seconds: float  #: of the complete stage
    publishing: float  #: share of time spent publishing, without starting Ray
    stored_bytes: int  #: size of the store


@dataclass(frozen=True)
class MemoryBench:
    """The peak memory of all scenes."""

    peaks: list[Peak]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return table(self.peaks).split("\n")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "peaks": [asdict(peak) for peak in self.peaks]}


def bench_memory(sides: Sequence[int]) -> MemoryBench:
    """Measure scenes of these sides (multiples of 64 pixels), each mapped in a separate process; uses temporary files.

    Raises:
        InputError: a side is invalid, or `RAY_ADDRESS` names a cluster.
    """
    check_one_machine()
    for side in sides:
        check_side(side)
    peaks: list[Peak] = []
    for side in sides:
        with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
            info(f"{side} x {side} pixels")
            config = stub_workspace(Path(folder), shape_yx=(side, side), tile=TILE, filled=True)
            peaks += [run_in_subprocess(_measured, config, workers) for workers in WORKERS]
    first = {peak.workers: peak.bytes for peak in reversed(peaks)}
    return MemoryBench([replace(peak, ratio=peak.bytes / first[peak.workers]) for peak in peaks])


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
    """Shut down Ray if this process started it."""
    from jobs.runtime import ray_cluster

    ray_cluster.close()


class Larger:
    """Predictor that picks the source with the larger first band as class, and that band's value as confidence.

    It holds the network and reads tiles as the network does.
    """

    rows = 1

    def __init__(self, job: MapJob) -> None:
        self.products = job.products
        self.network: Predictor = replace(job, predictor=None).make_predictor()

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """Read a tile as for the network."""
        return self.network.read(store, tile)

    def compute(self, tile: TileInput) -> TileResult:
        """Compute the products `class` and `confidence`."""
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
    """Format the peaks as text; see `Peak` for the columns."""
    lines = [machine(), "", f"{'pixels':<16}{'workers':>8}{'peak memory':>14}{'ratio':>8}{'seconds':>10}{'publishing':>12}"]
    lines += [
        f"{f'{p.side} x {p.side}':<16}{p.workers:>8}{p.bytes / 1e6:>11,.0f} MB{p.ratio:>8.2f}{p.seconds:>10,.0f}"
        f"{p.publishing:>12.0%}"
        for p in peaks
    ]
    lines.append("ratios are to the first scene with the same number of workers; times exclude a real network")
    return "\n".join(lines)
