"""One attempt at a set of tiles: run the workers, record every outcome in the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from jobs.config.config import ResourcesSection
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.runtime.logs import event
from jobs.runtime.progress import info, pluralize, progress_bar
from jobs.runtime.prometheus import MapMetrics, map_metrics
from jobs.runtime.worker_resources import WorkerResources, own_device
from jobs.workflow.errors import StageError
from mibf.device import check_precision
from pipeline.grid import Tile
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.maps.ledger import LedgerEvent
from pipeline.maps.outcome import DeviceFailedError, TileOutcome
from pipeline.maps.predictor import TileReader
from pipeline.maps.tile_mapper import MapJob, TileMapper
from pipeline.parallel.cpu_count import cpu_count

#: Cause recorded for a tile whose worker died.
WORKER_DIED = "worker died (out of memory or killed) on every attempt"


@dataclass
class MapTimings:
    """Time spent by a map's workers, in seconds, and the work done."""

    read: float = 0.0
    compute: float = 0.0
    write: float = 0.0
    pixels: int = 0
    tiles: int = 0
    rows: set[int] = field(default_factory=set)
    first: float = np.inf
    last: float = -np.inf
    publish: float = 0.0

    def add(self, done: TileOutcome) -> None:
        """Add a tile; for a failed one only its time."""
        self.read, self.compute = self.read + done.read_seconds, self.compute + done.compute_seconds
        self.write = self.write + done.write_seconds
        if not done.cause:
            self.pixels, self.tiles = self.pixels + done.pixels, self.tiles + 1
        self.rows |= {done.rows} - {0}
        if done.started is not None and done.finished is not None:
            self.first, self.last = min(self.first, done.started), max(self.last, done.finished)

    def figures(self, workers: int) -> dict[str, Any]:
        """Compute shares of the time from the first tile's start to the last one's end, and of publishing after that.

        Reading, computing and writing overlap, so the shares may add up to more than one.
        """
        span = max(self.last - self.first, 1e-9)
        if not self.tiles:
            return {"tiles_mapped": 0, "publish_seconds": round(self.publish, 2)}
        available = span * max(1, workers)  # seconds of all workers
        return {
            "tiles_mapped": self.tiles,
            "pixels_mapped": self.pixels,
            "tiles_seconds": round(span, 2),
            "pixels_per_second": round(self.pixels / span, 1),
            "reading": round(self.read / available, 4),
            "computing": round(self.compute / available, 4),
            "writing": round(self.write / available, 4),
            "waiting": round(max(0.0, 1 - (self.read + self.compute + self.write) / available), 4),
            "publish_seconds": round(self.publish, 2),
            "publishing": round(self.publish / (span + self.publish), 4),
            "rows_in_work": sorted(self.rows),
        }


class Workers(Protocol):
    """Workers that maps share."""

    def start(self, workers: int, resources: ResourcesSection) -> int:
        """Start them unless they were; the arguments are those of the run's configuration. Returns their number."""

    def map(
        self,
        job: MapJob,
        tiles: Sequence[Tile],
        each: Callable[[TileOutcome], None],
        *,
        isolated: bool,
        workers: int,
        resources: ResourcesSection,
    ) -> None:
        """Map tiles; the arguments are as for `map_on_ray`, `workers` and `resources` those of the run's configuration."""


class Attempt:
    """One attempt at tiles of any scenes: every outcome goes to the ledger, the log, the metrics and the timings."""

    def __init__(
        self,
        spec: MapSpec,
        maps: Mapping[str, SceneMap],
        run: str,
        lease: Lease,
        timings: MapTimings,
        *,
        done: Callable[[SceneMap], None] = lambda scene: None,
        workers: Workers | None = None,
        resources: WorkerResources | None = None,
    ) -> None:
        """Create.

        Args:
            spec: of the map.
            maps: the scenes.
            run: id of the run.
            lease: checked before each record.
            timings: to which the outcomes are added.
            done: called once the last tile of a scene is done; from then on the scene is no longer used here.
            workers: workers that are shared with other maps; by default, and without workers, the map has its own.
            resources: of its own workers, from `check_workers`, for the first attempt; by default they are checked then.
        """
        self._spec, self._maps, self._run, self._lease, self._timings = spec, maps, run, lease, timings
        self._done, self._workers, self._resources = done, workers, resources
        self._open: set[Tile] = set()
        self._before: dict[Tile, int] = {}
        self._left: dict[str, int] = {}  #: number of tiles that are not done, by scene

    @cached_property
    def _metrics(self) -> MapMetrics:
        """Created when first used, because it imports Ray, which takes seconds that a map with nothing to do saves."""
        return map_metrics(self._spec.config)

    def run(self, tiles: Sequence[Tile], *, isolated: bool) -> list[Tile]:
        """Map tiles once and record the outcomes; `isolated` as for `map_on_ray`.

        Returns:
            The tiles that are not done.

        Raises:
            LeaseLostError: the workspace lease was lost.
            StageError: every device failed.
        """
        scenes = {name: self._maps[name] for name in dict.fromkeys(tile.scene for tile in tiles)}
        last = {name: scene.ledger.last() for name, scene in scenes.items()}
        self._left = {name: sum(s != "done" for s in scene.states().values()) for name, scene in scenes.items()}
        self._before = {t: state.attempts if (state := last[t.scene].get(t.window)) else 0 for t in tiles}
        del last
        self._open = set(tiles)
        resources = None if isolated else self._resources
        map_tiles = _executor(self._spec, self._maps, isolated=isolated, shared=self._workers, resources=resources)
        with progress_bar("map", len(tiles), unit="tiles") as advance:

            def take(outcome: TileOutcome) -> None:
                if outcome.tile not in self._open:
                    return  # reported before: its worker died before Ray had recorded its result
                self._timings.add(outcome)
                self._lease.check()
                self._record(outcome)
                advance(1)

            map_tiles(tiles, take)
        for tile in [tile for tile in tiles if tile in self._open]:
            self._record(TileOutcome(tile=tile, cause=WORKER_DIED, finished=time.time()))
        unfinished = {name: scene for name, scene in scenes.items() if self._left[name]}
        for scene in unfinished.values():
            scene.ledger.flush()
        return [Tile(name, window) for name, scene in unfinished.items() for window in scene.retry_selection(tiles).tiles]

    def _record(self, outcome: TileOutcome) -> None:
        tile = outcome.tile
        self._open.remove(tile)
        if outcome.cause:  # by this machine's clock, as the delay before a retry; a worker's may be wrong by hours
            outcome = replace(outcome, finished=time.time())
        scene, attempt = self._maps[tile.scene], self._before[tile] + 1
        fingerprint, model = scene.planned[tile.window], self._spec.digest
        scene.ledger.append([LedgerEvent.of(outcome, fingerprint=fingerprint, model=model, run=self._run, attempt=attempt)])
        _log(outcome, attempt)
        self._metrics.tile(outcome, attempt)
        self._left[tile.scene] -= not outcome.cause
        if not self._left[tile.scene]:
            self._done(scene)


def make_job(spec: MapSpec, maps: Mapping[str, SceneMap]) -> MapJob:
    """What the workers of a map need to know."""
    section = spec.config.map
    return MapJob(
        model=spec.model,
        digest=spec.digest,
        stores={name: scene.store.url for name, scene in maps.items()},
        map_stores={name: scene.work_url for name, scene in maps.items()},
        products=spec.products,
        precision=section.precision,
        priors=spec.config.prediction.priors,
        mc_samples=section.mc_samples,
        seed=section.seed,
        missing=section.missing,
        set_thresholds=spec.set_thresholds,
        reader=TileReader.of(spec.bundle, section.missing),
        predictor=spec.predictor,
    )


def check_workers(spec: MapSpec, maps: Mapping[str, SceneMap], *, shared: Workers | None = None) -> WorkerResources | None:
    """Check before anything is written that the nodes of the cluster, if the map uses one, have stores and precision.

    `shared` are workers that the map shares with others; None if it starts its own.

    Returns:
        The resources of the map's own workers; None if it has none.

    Raises:
        InputError: a node lacks a store or has another version of mibf, its device does not support the precision, or the
            cluster cannot be reached.
        GpusUnavailableError: the cluster did not provide GPUs in time.
    """
    section = spec.config.map
    if section.workers == 0:
        return None
    from jobs.map.ray_workers import object_store, reading_cpus
    from jobs.runtime import ray_cluster  # import Ray only where it is used

    stores = [storage.join(scene.store.url, "zarr.json") for scene in maps.values()]
    if shared is not None:
        shared.start(section.workers, spec.config.resources)
        ray_cluster.check_shared(stores)
        return None
    readers = reading_cpus(section.readers)
    memory = object_store(max(scene.input_bytes for scene in maps.values()), section.workers, section.readers)
    ray_cluster.ensure(workers=section.workers + readers, object_store=memory)
    ray_cluster.check_shared(stores)
    resources = ray_cluster.share_cluster(spec.config.resources, section.workers, reserved_cpus=readers)
    if resources.gpus:
        ray_cluster.check_gpu(section.precision, resources, key="map.precision")
    else:
        check_precision(torch.device("cpu"), section.precision, key="map.precision")
    return resources


def _executor(
    spec: MapSpec,
    maps: Mapping[str, SceneMap],
    *,
    isolated: bool,
    shared: Workers | None = None,
    resources: WorkerResources | None = None,
) -> Callable[[Sequence[Tile], Callable[[TileOutcome], None]], None]:
    """Return a function that maps tiles and reports each: in this process, on the map's own Ray workers or shared ones."""
    section, job = spec.config.map, make_job(spec, maps)
    if section.workers == 0:

        def in_process(tiles: Sequence[Tile], take: Callable[[TileOutcome], None]) -> None:
            try:
                for outcome in TileMapper(job, threads=cpu_count(), device=own_device(spec.config.resources)).map(tiles):
                    take(outcome)
            except DeviceFailedError as error:
                raise StageError(
                    f"tile {error.tile.key}: the device of this process failed ({error.cause}). Finished tiles are kept, "
                    "and no tile counts as failed. Check the device, then run `mibf rerun` to map the remaining tiles."
                ) from error

        where, map_tiles = f"in this process on {pluralize(cpu_count(), 'cores')}", in_process
    elif shared is not None:

        def on_shared(tiles: Sequence[Tile], take: Callable[[TileOutcome], None]) -> None:
            resources = spec.config.resources
            shared.map(job, tiles, take, isolated=isolated, workers=section.workers, resources=resources)

        return on_shared
    else:
        from jobs.map.ray_workers import map_on_ray, reading_cpus
        from jobs.runtime import ray_cluster  # import Ray only where it is used

        readers = reading_cpus(section.readers)
        if isolated:  # before a retry nodes and GPUs were checked already, but the GPUs may be gone
            resources = ray_cluster.share_cluster(spec.config.resources, section.workers, reserved_cpus=readers)
            if not resources.gpus:
                check_precision(torch.device("cpu"), section.precision, key="map.precision")
        found = resources or check_workers(spec, maps)
        assert found is not None

        def on_ray(tiles: Sequence[Tile], take: Callable[[TileOutcome], None]) -> None:
            map_on_ray(job, tiles, found, each=take, isolated=isolated, readers=section.readers)

        read_by = f", {pluralize(section.readers, 'readers')}" if section.readers else ""
        where, map_tiles = f"on {found}{read_by}", on_ray
    if not isolated:  # on a retry it has been printed already
        info(f"mapping {where}, {section.precision}")
    return map_tiles


def _log(outcome: TileOutcome, attempt: int) -> None:
    """Log a tile's outcome as an event."""
    tile = outcome.tile
    values: dict[str, Any] = {"scene": tile.scene, "tile": tile.key, "attempt": attempt, "pixels": outcome.pixels}
    values |= {name: round(getattr(outcome, name), 4) for name in ("read_seconds", "compute_seconds", "write_seconds")}
    if outcome.cause:
        event("tile failed", level="error", cause=outcome.cause, **values)
    else:
        event("tile done", **values)
