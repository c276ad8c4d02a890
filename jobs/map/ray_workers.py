"""Map tiles with Ray Data: tiles are rows, one actor per device maps them and returns small result rows.

A worker has several tasks at a time: while it computes a tile, it reads the next ones, also of the next task, directly from
the patch store and writes the previous ones directly to the map store, so no pixels pass through Ray. If devices wait for
reading, separate reader actors on CPUs anywhere in the cluster read for them; their tiles pass through Ray's object store,
which limits how many are held at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from functools import partial
from threading import Condition
from typing import Any

import numpy as np
import ray.data
from ray.util.annotations import RayDeprecationWarning

from jobs.map.device_health import Device, DeviceHealth, format_all_failed, format_given_up, format_replaced
from jobs.runtime import ray_cluster
from jobs.runtime.progress import warn
from jobs.runtime.worker_resources import WorkerResources
from jobs.workflow.errors import StageError
from pipeline.grid import Tile, Window
from pipeline.maps.outcome import DeviceFailedError, TileOutcome
from pipeline.maps.predictor import TileInput
from pipeline.maps.tile_mapper import LoadedTile, MapJob, TileLoader, TileMapper
from pipeline.maps.tile_threads import TileThreads

Rows = dict[str, np.ndarray[Any, Any]]
#: Maximum tiles per task, and minimum tasks per worker, for all workers to finish at about the same time.
TILES_A_TASK, TASKS_A_WORKER = 16, 32
#: Tasks that a worker has at a time at least, one for each step: reading, computing, writing. One more is queued.
STEPS, QUEUED = 3, 1
#: Seconds that a worker waits before it ends, for its last results to leave the process.
LAST_RESULTS = 1.0
#: CPUs reserved for a reader, which mostly waits for storage.
READER_CPUS = 0.5
#: How often Ray retries a task whose worker died (by default without limit). Then the task and its tiles are given up.
RETRIES = 1
_WINDOW_FIELDS = ("y", "x", "height", "width")
_OUTCOME_FIELDS = tuple(field.name for field in fields(TileOutcome) if field.name != "tile")


def map_on_ray(
    job: MapJob,
    tiles: Sequence[Tile],
    share: WorkerResources,
    *,
    each: Callable[[TileOutcome], None],
    isolated: bool = False,
    readers: int = 0,
) -> None:
    """Map tiles on Ray workers; `each` is called once a tile is finished, in any order, sometimes twice.

    A tile whose workers died is not reported, and neither may be other tiles of the same worker. With `isolated` each
    tile is a separate task, and a worker has one task at a time.

    A tile at which a device failed is returned, as are those that waited for it; a device that fails again at once is given
    up, and the others map the rest.

    Raises:
        StageError: all devices were given up.
    """
    health = DeviceHealth(share.devices)
    expected: set[tuple[Device, str]] = set()  # replaced workers that were reported, and devices whose process was ended
    left = list(tiles)
    with ExitStack() as held:
        while left:
            put_back: dict[Tile, None] = {}
            open_tiles = dict.fromkeys(left)
            given_up = set(health.given_up)
            with closing(_rows(job, left, share, isolated=isolated, readers=readers)) as rows:
                for row in rows:
                    outcome, device = _from_row(row)
                    _report_replaced(row, device, expected)
                    if not row["device_error"]:
                        health.worked(device)
                    else:
                        verdict = "again" if row["put_back"] else health.failed(device, outcome.tile, outcome.cause)
                        if verdict != "tile":
                            put_back[outcome.tile] = None
                        if verdict == "again":
                            continue
                        if verdict == "device":
                            break
                    open_tiles.pop(outcome.tile, None)
                    each(outcome)
            lost = [device for device in health.given_up if device not in given_up]
            # After a complete pass, the tiles that are open but not returned are those whose workers died.
            left = list(open_tiles if lost else put_back)
            for device in lost:
                share = share.without_device()
                warn(format_given_up(device, health.given_up[device], share.workers))
                if not share.workers:
                    raise StageError(format_all_failed(health.given_up, len(left)))
                if share.gpus:
                    ray_cluster.hold_gpu(device.node, device.name, held)


def _report_replaced(row: dict[str, Any], device: Device, expected: set[tuple[Device, str]]) -> None:
    """Warn once of each worker that died and was replaced, which Ray does in silence."""
    if row["device_error"]:
        expected.add((device, ""))
    elif row["replaced"] and not expected & {(device, ""), (device, str(row["worker"]))}:
        expected.add((device, str(row["worker"])))
        warn(format_replaced(device))


def _rows(
    job: MapJob, tiles: Sequence[Tile], share: WorkerResources, *, isolated: bool, readers: int
) -> Generator[dict[str, Any], None, None]:
    """Map tiles once and yield the workers' rows; closing the iterator ends the workers."""
    at_a_time = 1 if isolated or readers else tiles_a_task(len(tiles), share.workers)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # importing it has reset what was set when Ray started
    context.max_errored_blocks = -1  # blocks whose worker died; errors of tiles are caught in the worker
    rows = [{"scene": tile.scene, **{name: getattr(tile.window, name) for name in _WINDOW_FIELDS}} for tile in tiles]
    blocks = -(-len(rows) // at_a_time)
    size = len(rows) // blocks  # of the smallest block: Ray needs a number for GPUs, and merges smaller blocks
    dataset = ray.data.from_items(rows, override_num_blocks=blocks)
    steps = 1 if isolated else _steps(readers, at_a_time, share)
    # No worker takes more than its share while another one is still starting.
    queued = 1 if isolated else min(steps + QUEUED, -(-blocks // share.workers))
    deaths = {"max_restarts": -1, "max_task_retries": RETRIES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # the options in `deaths` have no replacement yet
        if readers:
            dataset = dataset.map_batches(
                _Reader,
                fn_constructor_kwargs={"job": job},
                batch_size=size,
                compute=ray.data.ActorPoolStrategy(size=readers),
                num_cpus=READER_CPUS,
                **deaths,
            )
        dataset = dataset.map_batches(
            _Worker,
            fn_constructor_kwargs={"job": job, "threads": share.cpus},
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(size=share.workers, max_tasks_in_flight_per_actor=queued),
            num_cpus=share.cpus,
            num_gpus=share.gpu_share or None,
            max_concurrency=steps,
            **deaths,
        )
    yield from dataset.iter_rows()


def tiles_a_task(tiles: int, workers: int) -> int:
    """Number of tiles per task, for this many tiles and workers."""
    return max(1, min(TILES_A_TASK, tiles // (TASKS_A_WORKER * workers)))


def _steps(readers: int, tiles: int, share: WorkerResources) -> int:
    """Tasks of so many tiles that a worker has at a time: those that hold the tiles that it may read ahead."""
    threads = TileThreads.of("cuda" if share.gpus else "cpu", share.cpus)
    if readers:  # they hold the others, in Ray's object store
        return STEPS - 1 + threads.ahead
    return max(STEPS, -(-threads.tiles // tiles))


def reading_cpus(readers: int) -> int:
    """Number of CPUs that readers take, rounded up."""
    return math.ceil(readers * READER_CPUS)


def object_store(tile: int, workers: int, readers: int) -> int:
    """Object store memory in bytes for tiles of `tile` bytes: those being read, queued and computed, and as many again.

    The latter leave room for what workers with GPUs hold ahead.

    0 without readers.
    """
    return 2 * tile * ((STEPS - 1 + QUEUED) * workers + readers) if readers else 0


class _Worker:
    """Actor that maps tiles in a separate process, on the device that Ray assigned to it.

    Ray calls it for several tasks at a time, which share the mapper's threads and its room for tiles.
    """

    def __init__(self, job: MapJob, threads: int) -> None:
        self.assigned = ray_cluster.assigned_device()
        self.mapper = TileMapper(job, threads=threads, device=self.assigned.device)
        self.replaced = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._calls, self._call_ended = 0, Condition()

    async def __call__(self, rows: Rows) -> Rows:
        # Ray runs other functions one at a time, whatever an actor's concurrency.
        return await asyncio.to_thread(self._run, rows)

    def _run(self, rows: Rows) -> Rows:
        planned = _tiles(rows)
        done: list[TileOutcome] = []
        failure = None
        with self._called():
            try:
                done.extend(self.mapper.map_loaded(self._loads(planned, rows)))
            except DeviceFailedError as error:
                failure = error
            return _to_rows(done, planned, failure, self.assigned) | {"replaced": np.full(len(planned), self.replaced)}

    @contextmanager
    def _called(self) -> Iterator[None]:
        """Count a call; if the device has failed, end the process after the last one, and Ray runs the task in a new one."""
        with self._call_ended:
            if self.mapper.device_failed:
                self._call_ended.wait_for(lambda: not self._calls)
                time.sleep(LAST_RESULTS)
                os._exit(1)
            self._calls += 1
        try:
            yield
        finally:
            with self._call_ended:
                self._calls -= 1
                self._call_ended.notify_all()

    def _loads(self, planned: list[Tile], rows: Rows) -> Iterator[Callable[[], LoadedTile]]:
        """Functions that read each tile, or return what a reader actor has read."""
        if "content" not in rows:
            yield from (partial(self.mapper.load, tile) for tile in planned)
            return
        columns = (rows[name] for name in ("started", "seconds", "content", "cause"))
        for tile, started, seconds, content, cause in zip(planned, *columns, strict=True):
            yield partial(_received, tile, float(started), float(seconds), content, str(cause))


def _received(tile: Tile, started: float, seconds: float, content: bytes, cause: str) -> LoadedTile:
    """A tile as a reader actor has read it."""
    return LoadedTile(tile, started, seconds, TileInput.from_bytes(content) if content else None, cause)


class _Reader:
    """Actor that reads tiles for the workers; it loads no network and uses no device."""

    def __init__(self, job: MapJob) -> None:
        self.loader = TileLoader(job, job.make_reader())

    def __call__(self, rows: Rows) -> Rows:
        reads = [self.loader.load(tile) for tile in _tiles(rows)]
        content = np.empty(len(reads), object)  # NumPy's fixed-length bytes would strip trailing zeros
        content[:] = [b"" if read.content is None else read.content.to_bytes() for read in reads]
        columns: dict[str, list[Any]] = {name: [getattr(r, name) for r in reads] for name in ("started", "seconds", "cause")}
        return rows | {name: np.array(values) for name, values in columns.items()} | {"content": content}


def _tiles(rows: Rows) -> list[Tile]:
    windows = zip(*(rows[name] for name in _WINDOW_FIELDS), strict=True)
    return [Tile(str(s), Window(*map(int, w))) for s, w in zip(rows["scene"], windows, strict=True)]


def _to_rows(
    done: list[TileOutcome], planned: list[Tile], failure: DeviceFailedError | None, assigned: ray_cluster.AssignedDevice
) -> Rows:
    """The rows of a task: outcomes, then the tile at which the device failed, then those that were returned untried."""
    failed = [] if failure is None else [TileOutcome(tile=failure.tile, cause=failure.cause)]
    reported = {outcome.tile for outcome in (*done, *failed)}
    untried = [TileOutcome(tile=tile) for tile in planned if tile not in reported]
    found = [*done, *failed, *untried]
    columns: dict[str, list[Any]] = {"scene": [d.tile.scene for d in found]}
    columns |= {name: [getattr(d.tile.window, name) for d in found] for name in _WINDOW_FIELDS}
    columns |= {name: [getattr(d, name) for d in found] for name in _OUTCOME_FIELDS}
    columns["device_error"] = [position >= len(done) for position in range(len(found))]
    columns["put_back"] = [position >= len(done) + len(failed) for position in range(len(found))]
    columns |= {"node": [assigned.node] * len(found), "device": [assigned.name] * len(found)}
    return {name: np.array(values) for name, values in columns.items()}


def _from_row(row: dict[str, Any]) -> tuple[TileOutcome, Device]:
    tile = Tile(str(row["scene"]), Window(*(int(row[name]) for name in _WINDOW_FIELDS)))
    outcome = TileOutcome(tile=tile, **{name: row[name] for name in _OUTCOME_FIELDS})
    return outcome, Device(str(row["node"]), str(row["device"]))
