"""mibf bench loader: pixels per second that a map reads and writes on one core and two, with a network that costs nothing.

Fast devices are bound by what brings pixels to them: reading, decoding and normalizing tiles with their halo, and encoding,
compressing and writing the products. The ratio of two threads on two cores to one on one core says how far threads of one
process get in each other's way.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.batches import on_cores
from jobs.bench.harness.random_workspace import random_model, random_workspace
from jobs.bench.harness.table import Row, lines, row
from jobs.bench.harness.timing import Case, measure
from jobs.bench.map import MapsElsewhere, check_side
from jobs.bench.map_memory import Larger
from jobs.bench.network import machine
from jobs.config.config import Config
from jobs.map.attempt import make_job
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.runtime.progress import info, progress_bar
from jobs.workflow.workspace import Workspace
from pipeline.grid import Tile
from pipeline.maps.tile_mapper import MapJob, TileLoader, TileMapper
from pipeline.maps.tile_threads import AHEAD, TileThreads
from pipeline.parallel.cpu_count import cpu_count
from pipeline.store.patch_store import PatchStore

DECODING, READING, MAPPING = "zarr, no halo", "reading tiles", "mapping tiles"
READING_2, MAPPING_2 = "reading, 2 threads", "mapping, 2 threads each"
#: Cores of the cases that do not use one, and the case that each is compared with.
CORES, BASELINES = {READING_2: 2, MAPPING_2: 2}, {READING_2: READING, MAPPING_2: MAPPING}


@dataclass(frozen=True)
class LoaderRates:
    """Rates for one scene."""

    name: str
    pinned: bool  #: True if the system can pin a process to cores
    rows: list[Row]


@dataclass(frozen=True)
class LoaderBench:
    """The rates of all scenes."""

    scenes: list[LoaderRates]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        found = [machine()]
        for scene in self.scenes:
            where = "on one core, or two with 2 threads" if scene.pinned else "with one or two threads"
            found += ["", f"{scene.name}; pixels {where}", *lines(scene.rows)]
        return found

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "scenes": [asdict(scene) for scene in self.scenes]}


def bench_loader(bands: Sequence[Sequence[int]], *, side: int, rounds: int) -> LoaderBench:
    """Measure random scenes of side x side pixels with these numbers of bands; only temporary files are written.

    Raises:
        InputError: the side is not a multiple of 64 pixels.
    """
    info("keep the machine idle during the benchmark: other load affects the measurements")
    check_side(side)
    scenes = []
    for each in bands:
        with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
            config = random_workspace(Path(folder), bands=each, side=side)
            random_model(config)
            name = f"{side} x {side} pixels of random values, {'+'.join(map(str, each))} bands"
            scenes.append(_measured(config, name, folder, rounds=rounds))
    return LoaderBench(scenes)


def _measured(config: Config, name: str, folder: str, *, rounds: int) -> LoaderRates:
    workspace = Workspace.of(config)
    elsewhere = MapsElsewhere(workspace.url, workspace.run, str(Path(folder) / "maps"))
    spec = MapSpec.of(config, elsewhere)
    scene = SceneMap(spec, elsewhere, config.scenes[0])
    scene.work(lost=lambda window: None)
    job = make_job(spec, {scene.name: scene})
    # Once each: a worker loads its model once for all tiles.
    one = TileMapper(replace(job, predictor=Larger), tile_threads=TileThreads.of("cpu", 1))
    two = TileMapper(replace(job, predictor=Larger), tile_threads=TileThreads(readers=2, ahead=AHEAD, writers=2))
    work: dict[str, Callable[[], object]] = {
        DECODING: partial(_decode, job.stores[scene.name], scene.tiles),
        READING: partial(_read, job, scene.tiles),
        READING_2: partial(_read, job, scene.tiles, threads=2),
        MAPPING: partial(_map, one, scene.tiles),
        MAPPING_2: partial(_map, two, scene.tiles),
    }
    pixels, cores = float(np.prod(scene.store.shape)), cpu_count()
    cases = [Case(what, pixels, partial(_on_cores, what, do)) for what, do in work.items() if CORES.get(what, 1) <= cores]
    with progress_bar(f"bench {name}", rounds + 1, unit="rounds") as advance:
        timings = measure(cases, rounds=rounds, each=lambda: advance(1))
    rows = [row(timings[case.name], timings[BASELINES.get(case.name, DECODING)]) for case in cases]
    return LoaderRates(name, hasattr(os, "sched_setaffinity"), rows)


def _on_cores(what: str, work: Callable[[], object]) -> None:
    with on_cores(CORES.get(what, 1)):
        work()


def _decode(url: str, tiles: Sequence[Tile]) -> None:
    """Read the tiles' pixels with Zarr alone."""
    store = PatchStore(url)
    for tile in tiles:
        for source in store.sources:
            down, across = (slice(cut.start * source.scale, cut.stop * source.scale) for cut in tile.window.slices)
            np.asarray(store.array(f"sources/{source.name}")[:, down, across])


def _read(job: MapJob, tiles: Sequence[Tile], *, threads: int = 1) -> None:
    """Read the tiles as a map does."""
    loader = TileLoader(job, job.make_reader())
    with ThreadPoolExecutor(threads) as pool:
        for cause in pool.map(lambda tile: loader.load(tile).cause, tiles):
            assert not cause, cause


def _map(mapper: TileMapper, tiles: Sequence[Tile]) -> None:
    """Map the tiles in this process, without publishing."""
    for outcome in mapper.map(tiles):
        assert not outcome.cause, outcome.cause
