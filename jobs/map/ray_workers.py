"""Map tiles with Ray Data: tiles are rows, one actor per device maps them and returns small result rows.

A worker reads tiles directly from the patch store, one ahead of the tile being computed, and writes them directly to the
map store, so no pixels pass through Ray. If devices wait for reading, separate reader actors on CPUs anywhere in the
cluster read for them; their tiles pass through Ray's object store, which limits how many are held at a time.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from typing import Any

import numpy as np
import ray.data
import torch
from ray.util.annotations import RayDeprecationWarning

from jobs.map.device_health import Device, DeviceHealth, format_all_failed, format_given_up
from jobs.runtime import ray_cluster
from jobs.runtime.progress import warn
from jobs.runtime.worker_resources import WorkerResources
from jobs.workflow.errors import StageError
from pipeline.grid import Tile, Window
from pipeline.maps.outcome import DeviceFailedError, TileOutcome
from pipeline.maps.predictor import TileInput
from pipeline.maps.tile_mapper import LoadedTile, MapJob, TileMapper

Rows = dict[str, np.ndarray[Any, Any]]
#: Maximum tiles per task, and minimum tasks per worker, for all workers to finish at about the same time.
TILES_A_TASK, TASKS_A_WORKER = 16, 32
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

    A tile whose workers died is not reported, and neither may be tiles waiting for the same worker. With `isolated`
    each tile is a separate task, and no task is queued on a busy worker.

    A tile at which a device failed is returned, as are those that waited for it; a device that fails again at once is given
    up, and the others map the rest.

    Raises:
        StageError: all devices were given up.
    """
    health = DeviceHealth(share.workers)
    left = list(tiles)
    with ExitStack() as held:
        while left:
            put_back: dict[Tile, None] = {}
            open_tiles = dict.fromkeys(left)
            given_up = set(health.given_up)
            with closing(_rows(job, left, share, isolated=isolated, readers=readers)) as rows:
                for row in rows:
                    outcome, device = _from_row(row)
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
                share = replace(share, workers=share.workers - 1)
                warn(format_given_up(device, health.given_up[device], share.workers))
                if not share.workers:
                    raise StageError(format_all_failed(health.given_up, len(left)))
                if share.gpus:
                    ray_cluster.hold_gpu(device.node, device.name, held)


def _rows(
    job: MapJob, tiles: Sequence[Tile], share: WorkerResources, *, isolated: bool, readers: int
) -> Generator[dict[str, Any], None, None]:
    """Map tiles once and yield the workers' rows; closing the iterator ends the workers."""
    at_a_time = 1 if isolated or readers else max(1, min(TILES_A_TASK, len(tiles) // (TASKS_A_WORKER * share.workers)))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # blocks whose worker died; errors of tiles are caught in the worker
    rows = [{"scene": tile.scene, **{name: getattr(tile.window, name) for name in _WINDOW_FIELDS}} for tile in tiles]
    blocks = -(-len(rows) // at_a_time)
    size = len(rows) // blocks  # of the smallest block: Ray needs a number for GPUs, and merges smaller blocks
    dataset = ray.data.from_items(rows, override_num_blocks=blocks)
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
            compute=ray.data.ActorPoolStrategy(size=share.workers, max_tasks_in_flight_per_actor=1 if isolated else None),
            num_cpus=share.cpus,
            num_gpus=share.gpus or None,
            **deaths,
        )
    yield from dataset.iter_rows()


def reading_cpus(readers: int) -> int:
    """Number of CPUs that readers take, rounded up."""
    return math.ceil(readers * READER_CPUS)


def object_store(tile: int, workers: int, readers: int) -> int:
    """Object store memory in bytes for tiles of `tile` bytes: those being read, queued and computed, times two.

    0 without readers.
    """
    return 2 * tile * (2 * workers + readers) if readers else 0


class _Worker:
    """Actor that maps tiles in a separate process, on the device that Ray assigned to it."""

    def __init__(self, job: MapJob, threads: int) -> None:
        self.assigned = ray_cluster.assigned_device()
        self.mapper = TileMapper(job, threads=threads, device=self.assigned.device)
        self.failed = False

    def __call__(self, rows: Rows) -> Rows:
        if self.failed:  # this process cannot use its device any more: Ray runs the task again in a new process
            os._exit(1)
        planned = _tiles(rows)
        done: list[TileOutcome] = []
        failure = None
        try:
            for outcome in self._mapped(planned, rows):
                done.append(outcome)
        except DeviceFailedError as error:
            failure, self.failed = error, True
        return _to_rows(done, planned, failure, self.assigned)

    def _mapped(self, planned: list[Tile], rows: Rows) -> Iterator[TileOutcome]:
        if "content" not in rows:
            return self.mapper.map(planned)
        loaded = zip(planned, rows["started"], rows["seconds"], rows["content"], rows["cause"], strict=True)
        reads = (
            LoadedTile(tile, float(started), float(seconds), TileInput.from_bytes(content) if content else None, str(cause))
            for tile, started, seconds, content, cause in loaded
        )
        return self.mapper.finish(reads)


class _Reader:
    """Actor that reads tiles for the workers; it loads no network and uses no device."""

    def __init__(self, job: MapJob) -> None:
        self.mapper = TileMapper(job, threads=1, device=torch.device("cpu"))

    def __call__(self, rows: Rows) -> Rows:
        reads = list(self.mapper.read(_tiles(rows)))
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
    found = list(done)
    if failure is not None:
        finished = {outcome.tile for outcome in done}
        left = [tile for tile in planned if tile not in finished and tile != failure.tile]
        found += [TileOutcome(tile=failure.tile, cause=failure.cause), *(TileOutcome(tile=tile) for tile in left)]
    columns: dict[str, list[Any]] = {"scene": [d.tile.scene for d in found]}
    columns |= {name: [getattr(d.tile.window, name) for d in found] for name in _WINDOW_FIELDS}
    columns |= {name: [getattr(d, name) for d in found] for name in _OUTCOME_FIELDS}
    columns["device_error"] = [position >= len(done) for position in range(len(found))]
    columns["put_back"] = [position > len(done) for position in range(len(found))]
    columns |= {"node": [assigned.node] * len(found), "device": [assigned.name] * len(found)}
    return {name: np.array(values) for name, values in columns.items()}


def _from_row(row: dict[str, Any]) -> tuple[TileOutcome, Device]:
    tile = Tile(str(row["scene"]), Window(*(int(row[name]) for name in _WINDOW_FIELDS)))
    outcome = TileOutcome(tile=tile, **{name: row[name] for name in _OUTCOME_FIELDS})
    return outcome, Device(str(row["node"]), str(row["device"]))
