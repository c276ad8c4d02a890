"""plan: what `prepare` and `map` would write, how much memory and time they take. Reads headers, labels, a few shards."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import psutil

from jobs.config import Config
from jobs.plan_map import lines as map_lines
from jobs.plan_map import plan_map
from jobs.progress import bar
from jobs.scenes import open_scenes
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline import storage
from pipeline.engine import Threads, engine
from pipeline.estimate import estimate, memory, remarks
from pipeline.fill import OpenScene

#: Share of the free disk beyond which it is seen whether a store fits before it is written.
LARGE = 0.5


def plan(config: Config) -> dict[str, Any]:
    """The figures of every scene, and what is to be said of its files.

    Raises:
        InputError: the scenes cannot be prepared as they are configured, or there is no room for them.
    """
    workspace = Workspace.of(config)
    with engine(config.prepare.scheduler) as workers:
        scenes = open_scenes(config, workers)
        if config.prepare.scheduler is None:
            check_memory(scenes, workers.workers)
        found = {}
        with bar("write a few shards to memory", len(scenes), unit="scenes") as advance:
            for scene in scenes:
                figures = asdict(estimate(scene, workers=workers.workers))
                figures["sources"] = {s.declared.name: sorted({str(p.alignment) for p in s.parts}) for s in scene.sources}
                figures["remarks"] = remarks_of(scene)
                figures["map"] = asdict(plan_map(config, workspace, scene))
                found[scene.name] = figures
                advance(1)
    free = storage.free_bytes(workspace.url)
    _check_room(workspace.url, sum(f["stored_bytes"] for f in found.values()), free)
    return {"scenes": found, "workers": workers.workers, "free_bytes": free, "workspace": workspace.url}


def remarks_of(scene: OpenScene) -> list[str]:
    """What of a scene's files a person may want to change before they are read."""
    return [remark for source in scene.sources for remark in remarks(source, scene.template.shard)]


def available_memory() -> int:
    """Bytes of memory that this machine has to spare."""
    return int(psutil.virtual_memory().available)


def check_memory(scenes: list[OpenScene], workers: int) -> None:
    """See that so many shards at a time fit into memory.

    Raises:
        InputError: they do not.
    """
    available = available_memory()
    for scene in scenes:
        needed = memory(scene, min(workers, len(scene.shards)))
        if needed > available:
            side = scene.template.shard
            remedy = "prepare.shard" if side > 128 else "fewer bands, or a machine with more memory; prepare.scheduler"
            raise InputError(
                f"scene {scene.name!r}: {workers} shards of {side} x {side} pixels at a time take about "
                f"{needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free. Use a smaller {remedy}."
            )


def check_room(scenes: list[OpenScene], workspace: str, *, begun: int) -> None:
    """See that stores fit on their disk, `begun` bytes being there already; small ones are not looked at.

    Raises:
        InputError: they do not.
    """
    free = storage.free_bytes(workspace)
    if free is not None:
        free += begun  # what an interrupted prepare wrote is not written again
    sizes = [s.template.shape[0] * s.template.shape[1] * s.template.bytes_per_pixel for s in scenes]
    if free is not None and sum(sizes) > LARGE * free:
        _check_room(workspace, sum(estimate(scene, workers=Threads().workers).stored_bytes for scene in scenes), free)


def _check_room(workspace: str, needed: int, free: int | None) -> None:
    if free is not None and needed > free:
        raise InputError(
            f"workspace {workspace}: the stores take about {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there "
            "(what an earlier prepare made gives way only in the end). Make room, choose another workspace, or a coarser or "
            "smaller grid."
        )


def lines(found: dict[str, Any]) -> list[str]:
    """The plan, for a person."""
    told = []
    for name, f in found["scenes"].items():
        rows, columns = f["shape"]
        told += [
            f"{name}: {rows:,} x {columns:,} pixels",
            *(f"  {source}: {' and '.join(how)}" for source, how in f["sources"].items()),
            f"  {f['shards']:,} shards of {f['shard']} x {f['shard']} pixels, {f['objects']:,} objects",
            f"  {f['uncompressed_bytes'] / 1e9:,.2f} GB of pixels, about {f['stored_bytes'] / 1e9:,.2f} GB stored",
            f"  about {f['memory_bytes'] / 1e9:,.1f} GB of memory and {_duration(f['seconds'])}, "
            f"{found['workers']} shards at a time",
            *(f"  note: {remark}" for remark in f["remarks"]),
            *map_lines(f["map"], _duration(f["map"]["seconds"]) if f["map"]["pixels_due"] and f["map"]["seconds"] else ""),
        ]
    free = found["free_bytes"]
    told.append(f"workspace {found['workspace']}" + ("" if free is None else f": {free / 1e9:,.1f} GB free"))
    return told


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
