"""Checks before anything is written: disk space, memory, and warnings about the input files."""

from __future__ import annotations

import psutil

from mibf.errors import InputError
from pipeline.io import storage
from pipeline.parallel.executor import ThreadExecutor
from pipeline.store.build import PreparedScene
from pipeline.store.estimate import estimate, memory, remarks

#: Uncompressed size as a share of free disk space above which the stored size is estimated before writing.
LARGE = 0.5


def file_remarks(scene: PreparedScene) -> list[str]:
    """Return remarks on a scene's files that the user may want to fix before they are read."""
    return [remark for source in scene.sources for remark in remarks(source, scene.template.shard)]


def available_memory() -> int:
    """Return the available memory of this machine in bytes."""
    return int(psutil.virtual_memory().available)


def check_memory(scenes: list[PreparedScene], workers: int) -> None:
    """Check that `workers` concurrent shards fit into memory.

    Raises:
        InputError: they do not.
    """
    available = available_memory()
    for scene in scenes:
        needed = memory(scene, min(workers, len(scene.shards)))
        if needed > available:
            side = scene.template.shard
            remedy = "prepare.shard" if side > 128 else "the band count, or use more memory or a cluster (prepare.scheduler)"
            raise InputError(
                f"scene {scene.name!r}: {workers} concurrent shards of {side} x {side} pixels need about "
                f"{needed / 1e9:.1f} GB of memory, but only {available / 1e9:.1f} GB are free. Reduce {remedy}."
            )


def check_room(scenes: list[PreparedScene], workspace: str, *, written: int) -> None:
    """Check that the stores fit on their disk, where `written` bytes are already written; skipped for small stores.

    Raises:
        InputError: they do not.
    """
    free = storage.free_bytes(workspace)
    if free is not None:
        free += written  # shards of an interrupted prepare are reused
    sizes = [s.template.shape[0] * s.template.shape[1] * s.template.bytes_per_pixel for s in scenes]
    if free is not None and sum(sizes) > LARGE * free:
        check_free_space(
            workspace, sum(estimate(scene, workers=ThreadExecutor().workers).stored_bytes for scene in scenes), free
        )


def check_free_space(workspace: str, needed: int, free: int | None) -> None:
    """Check that `needed` bytes are free at the workspace; `free` is None where that is unknown.

    Raises:
        InputError: they are not.
    """
    if free is not None and needed > free:
        raise InputError(
            f"workspace {workspace}: the stores need about {needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free "
            "(the stores of an earlier prepare are replaced only at the end). Free some space, choose another workspace, or "
            "use a coarser or smaller grid."
        )
