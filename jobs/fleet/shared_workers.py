"""Ray workers that many runs share: started once, they map tiles of any run, with the models of the last runs in memory.

A run has its own workers where it is alone (`jobs.map.ray_workers`). A process that starts, imports torch and loads a model
takes longer than a small scene, so runs of a fleet share the workers, and take turns where these are busy.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from jobs.config.config import ResourcesSection
from jobs.map.device_health import Device, DeviceHealth, format_all_failed, format_given_up
from jobs.runtime import ray_cluster
from jobs.runtime.progress import info, pluralize, warn
from jobs.runtime.worker_resources import WorkerResources
from jobs.workflow.errors import StageError
from mibf.device import check_precision
from pipeline.grid import Tile
from pipeline.maps.outcome import DeviceFailedError, TileOutcome
from pipeline.maps.tile_mapper import MapJob, Predictor, TileMapper

#: Maximum tiles per task.
TILES_A_TASK = 16
#: Seconds between looks for a free worker and for an interruption.
POLL_SECONDS = 0.2
#: How often a tile whose worker died is mapped again, alone, before it is given up.
RETRIES = 1
#: Models that a worker keeps in memory, and runs whose stores it keeps open.
MODELS, OPEN_RUNS = 2, 8


class SharedWorkers:
    """The workers. Once they are started, several threads may use them."""

    def __init__(self, runs: int) -> None:
        """Create workers for a number of runs at a time."""
        self._runs = runs
        self._lock = threading.Lock()
        self._idle: queue.Queue[Any] = queue.Queue()
        self._starting: dict[Any, Any] = {}  #: actors by the reference that is ready once they have started
        self._cause: object = ""  #: why the last actor did not start
        self._share: WorkerResources | None = None
        self._size = 0
        self._health = DeviceHealth(1)

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
        """Map tiles; see `jobs.map.attempt.Workers`. Tiles whose workers died are not reported.

        Raises:
            InputError: the run's model cannot be used, or a device does not support its precision.
            StageError: all devices were given up.
        """
        size = self.start(workers, resources)
        job_reference, name = ray.put(job), uuid.uuid4().hex
        chunk = 1 if isolated else max(1, min(TILES_A_TASK, -(-len(tiles) // size)))
        todo = deque(list(tiles[start : start + chunk]) for start in range(0, len(tiles), chunk))
        deaths: Counter[Tile] = Counter()
        pending: dict[Any, tuple[Any, list[Tile]]] = {}
        try:
            while todo or pending:
                while todo and (worker := self._take(wait=not pending, left=len(todo))) is not None:
                    taken = todo.popleft()
                    pending[worker.map.remote(name, job_reference, taken)] = worker, taken
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_SECONDS)
                for reference in ready:
                    worker, taken = pending.pop(reference)
                    todo.extend(self._result(reference, worker, taken, deaths, each))
        except BaseException as error:
            for worker, _ in pending.values():  # busy with tiles of a run that is interrupted or has lost its lease
                self._end(worker, restart=isinstance(error, Exception))
            raise

    def start(self, workers: int, resources: ResourcesSection) -> int:
        """Start as many workers as the runs use at a time, `workers` each, at most those that the cluster holds.

        The first call must be in the main thread: only there does Ray leave Python's signal handlers in place.

        Returns:
            Number of workers.

        Raises:
            InputError: Ray cannot be used.
        """
        with self._lock:
            if self._share is not None:
                return max(1, self._size)
            ray_cluster.ensure(workers=workers)
            total = ray.cluster_resources()
            most = (
                int(total.get("GPU", 0)) * resources.workers_per_gpu
                or int(total.get("CPU", 0)) - ray_cluster.driver_takes_cpu()
            )
            wanted, most = self._runs * workers, max(1, most)
            if wanted > most:
                info(
                    f"{pluralize(self._runs, 'runs')} at a time would use {pluralize(wanted, 'workers')}; they share the "
                    f"{most:,} that the cluster holds"
                )
            self._share = ray_cluster.share_cluster(resources, min(wanted, most))
            info(f"mapping on {self._share}, shared by all runs")
            self._health = DeviceHealth(self._share.devices)
            for _ in range(self._share.workers):
                self._start_one()
            return self._size

    def _start_one(self) -> None:
        assert self._share is not None
        actor = ray.remote(num_cpus=self._share.cpus, num_gpus=self._share.gpu_share)(MapWorker).remote(self._share.cpus)
        self._starting[actor.ready.remote()] = actor
        self._size += 1

    def _take(self, *, wait: bool, left: int) -> Any | None:
        """Take a free worker; without `wait` return None if there is none."""
        while True:
            self._welcome()
            try:
                return self._idle.get(timeout=POLL_SECONDS if wait else 0.001)
            except queue.Empty:
                if not wait:
                    return None
            if not self._size:
                why = format_all_failed(self._health.given_up, left) if self._health.given_up else self._cause
                raise StageError(f"no shared worker is left: {why}")

    def _welcome(self) -> None:
        """Make workers available that have started."""
        with self._lock:
            ready = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)[0] if self._starting else []
            for reference in ready:
                actor = self._starting.pop(reference)
                try:
                    ray.get(reference)
                except RayError as error:
                    self._size, self._cause = self._size - 1, str(error).strip().splitlines()[-1]
                else:
                    self._idle.put(actor)

    def _result(
        self, reference: Any, worker: Any, taken: list[Tile], deaths: Counter[Tile], each: Callable[[TileOutcome], None]
    ) -> list[list[Tile]]:
        """Report what a task returned; return the tiles to map again."""
        try:
            outcomes, failure, device = ray.get(reference)
        except RayTaskError as error:  # the model cannot be loaded, for example
            self._idle.put(worker)
            raise error.cause from error
        except RayError:
            self._end(worker, restart=True)
            again = [tile for tile in taken if deaths[tile] < RETRIES]
            deaths.update(again)
            return [[tile] for tile in again]
        again = []
        if failure is None:
            self._idle.put(worker)
            with self._lock:
                self._health.worked(device)
        else:
            reported = {outcome.tile for outcome in outcomes}
            again = [tile for tile in taken if tile not in reported and tile != failure.tile]
            if self._is_tiles_fault(worker, device, failure):
                outcomes = [*outcomes, failure]
            else:
                again.insert(0, failure.tile)
        for outcome in outcomes:
            each(outcome)
        return [again] if again else []

    def _is_tiles_fault(self, worker: Any, device: Device, failure: TileOutcome) -> bool:
        """End a worker whose device failed at a tile, and start another one unless the device is given up."""
        with self._lock:
            verdict = self._health.failed(device, failure.tile, failure.cause)
        self._end(worker, restart=verdict != "device")
        if verdict == "device":
            warn(format_given_up(device, failure.cause, self._size))
        return verdict == "tile"

    def _end(self, worker: Any, *, restart: bool) -> None:
        with self._lock:
            self._size -= 1
            with suppress(RayError):
                ray.kill(worker)
            if restart and ray.is_initialized():
                self._start_one()


class MapWorker:
    """Actor that maps tiles of any run in a separate process, on the device that Ray assigned to it."""

    def __init__(self, threads: int) -> None:
        self._threads, self._assigned = threads, ray_cluster.assigned_device()
        self._predictors: dict[Hashable, Predictor] = {}
        self._mappers: dict[str, TileMapper] = {}

    def ready(self) -> None:
        """Return once the process has started."""

    def map(self, run: str, job: MapJob, tiles: list[Tile]) -> tuple[list[TileOutcome], TileOutcome | None, Device]:
        """Map tiles of a run; return their outcomes, the tile at which the device failed, if it did, and the device."""
        done: list[TileOutcome] = []
        failure = None
        try:
            done.extend(self._mapper(run, job).map(tiles))
        except DeviceFailedError as error:
            failure = TileOutcome(tile=error.tile, cause=error.cause)
        return done, failure, Device(self._assigned.node, self._assigned.name)

    def _mapper(self, run: str, job: MapJob) -> TileMapper:
        """The tile mapper of a run. Runs with the same model and settings use one network."""
        if run not in self._mappers:
            device = self._assigned.device
            check_precision(device, job.precision, key="map.precision")
            key = (job.digest, job.products, job.precision, job.priors, job.mc_samples, job.seed, job.missing, job.predictor)
            predictor = self._predictors.pop(key, None) or job.make_predictor(device)
            self._predictors = dict([*self._predictors.items(), (key, predictor)][-MODELS:])
            mapper = TileMapper(replace(job, predictor=lambda _: predictor), threads=self._threads, device=device)
            self._mappers = dict([*self._mappers.items(), (run, mapper)][-OPEN_RUNS:])
        return self._mappers[run]
