"""The workers of one map on Ray Data: tiles are rows, an actor for each device maps them, small rows come back.

A worker reads a tile where its store lies, a tile ahead of the one in work, and writes it where its map is in work: then
no pixel passes through Ray. Where devices wait for that, readers of their own, on processors anywhere in the cluster, read
for them: what they have read passes through Ray's object store, which bounds how much of it there is at a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import ray.data
from ray.util.annotations import RayDeprecationWarning

from jobs import cluster
from pipeline.grid import Window
from pipeline.mapper import Done, Job, Mapper, Read
from pipeline.predict import TileInput
from pipeline.tiles import Tile

Rows = dict[str, np.ndarray[Any, Any]]

#: Tiles of one task at the most, and tasks that each worker is to have at the least, so that all end at the same time.
TILES_A_TASK, TASKS_A_WORKER = 16, 32
#: What a reader takes of a processor: it mostly waits for storage.
READER_CPUS = 0.5
#: How often Ray sends a task to another worker when one dies with it; for ever, unless it is told. Then it is given up,
#: and so are its tiles.
RETRIES = 1
_PLACE = ("y", "x", "height", "width")
_TOLD = tuple(field.name for field in fields(Done) if field.name != "tile")


def map_on_ray(
    job: Job,
    tiles: Sequence[Tile],
    share: cluster.Share,
    *,
    each: Callable[[Done], None],
    alone: bool = False,
    readers: int = 0,
) -> None:
    """Map tiles on Ray's workers; `each` is told of a tile when it is done, in any order, at times twice.

    A tile whose workers died is not told of. What waits for the same worker may go with it: with `alone` each tile has a
    task of its own, and none waits for a worker that has one.
    """
    at_a_time = 1 if alone or readers else max(1, min(TILES_A_TASK, len(tiles) // (TASKS_A_WORKER * share.workers)))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # blocks whose worker died; what a tile raises never leaves its worker
    rows = [{"scene": tile.scene, **{name: getattr(tile.window, name) for name in _PLACE}} for tile in tiles]
    blocks = -(-len(rows) // at_a_time)
    size = len(rows) // blocks  # of the smallest block: Ray wants a number for GPUs, and joins smaller ones
    dataset = ray.data.from_items(rows, override_num_blocks=blocks)
    deaths = {"max_restarts": -1, "max_task_retries": RETRIES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of what has no other name: of `deaths`
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
            compute=ray.data.ActorPoolStrategy(size=share.workers, max_tasks_in_flight_per_actor=1 if alone else None),
            num_cpus=share.cpus,
            num_gpus=share.gpus or None,
            **deaths,
        )
    for row in dataset.iter_rows():
        each(_from_row(row))


def reading_cpus(readers: int) -> int:
    """Whole CPUs that readers take."""
    return math.ceil(readers * READER_CPUS)


def object_store(tile: int, workers: int, readers: int) -> int:
    """Bytes that tiles of so many bytes take in Ray's object store: what is read, waits and is in work, and as much again.

    Nothing without readers.
    """
    return 2 * tile * (2 * workers + readers) if readers else 0


class _Worker:
    """An actor: a mapper in a process of its own."""

    def __init__(self, job: Job, threads: int) -> None:
        self.mapper = Mapper(job, threads=threads)

    def __call__(self, rows: Rows) -> Rows:
        planned = _tiles(rows)
        if "content" not in rows:
            return _to_rows(self.mapper.map(planned))
        told_of = zip(planned, rows["started"], rows["seconds"], rows["content"], rows["cause"], strict=True)
        reads = (
            Read(tile, float(started), float(seconds), TileInput.from_bytes(content) if content else None, str(cause))
            for tile, started, seconds, content, cause in told_of
        )
        return _to_rows(self.mapper.finish(reads))


class _Reader:
    """An actor that reads for others."""

    def __init__(self, job: Job) -> None:
        self.mapper = Mapper(job, threads=1)

    def __call__(self, rows: Rows) -> Rows:
        reads = list(self.mapper.read(_tiles(rows)))
        content = np.empty(len(reads), object)  # as bytes of a fixed length numpy would take zeros off their ends
        content[:] = [b"" if read.content is None else read.content.to_bytes() for read in reads]
        told_of: dict[str, list[Any]] = {name: [getattr(r, name) for r in reads] for name in ("started", "seconds", "cause")}
        return rows | {name: np.array(values) for name, values in told_of.items()} | {"content": content}


def _tiles(rows: Rows) -> list[Tile]:
    windows = zip(*(rows[name] for name in _PLACE), strict=True)
    return [Tile(str(s), Window(*map(int, w))) for s, w in zip(rows["scene"], windows, strict=True)]


def _to_rows(done: Iterator[Done]) -> Rows:
    found = list(done)
    columns: dict[str, list[Any]] = {"scene": [d.tile.scene for d in found]}
    columns |= {name: [getattr(d.tile.window, name) for d in found] for name in _PLACE}
    columns |= {name: [getattr(d, name) for d in found] for name in _TOLD}
    return {name: np.array(values) for name, values in columns.items()}


def _from_row(row: dict[str, Any]) -> Done:
    tile = Tile(str(row["scene"]), Window(*(int(row[name]) for name in _PLACE)))
    return Done(tile, **{name: row[name] for name in _TOLD})
