"""Checks before anything is written: disk space, memory, and warnings about the input files."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from jobs.runtime.progress import pluralize
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.parallel.executor import Executor, ThreadExecutor
from pipeline.rasters.raster import header
from pipeline.scenes.coverage import bands_without_data, periods_without_data, sources_without_data
from pipeline.scenes.labels import RasterLabels
from pipeline.scenes.split import AddedLabels, RasterSplit
from pipeline.store.build import PreparedScene
from pipeline.store.estimate import estimate, memory, remarks

#: Uncompressed size as a share of free disk space above which the stored size is estimated before writing.
LARGE = 0.5
#: Why a source of several periods has no data, although each of them has.
NEVER_ALL = "no pixel is clear in all periods; set `gaps` to `interpolate` or `fill`"
#: Maximum number of bands listed in a message.
MOST_LISTED = 20


def file_remarks(scene: PreparedScene) -> list[str]:
    """Return remarks on a scene's files that the user may want to fix before they are read."""
    left_out = [*_left_out(scene)]
    more = f" (and so on, for {len(left_out)} files)" if len(left_out) > 1 else ""
    notes = [note for source in scene.sources for note in source.declared.notes]
    notes += [f"{note}{more}" for note in left_out[:1]]
    return list(dict.fromkeys([*scene.notes, *notes])) + [
        remark for source in scene.sources for remark in remarks(source, scene.template.shard)
    ]


def name_bands(number: int, names: Sequence[str]) -> str:
    """Describe a source's bands: their number and, where they have them, the first of their names."""
    if not names:
        return pluralize(number, "bands")
    more = ", ..." if len(names) > MOST_LISTED else ""
    return f"{pluralize(number, 'bands')} ({', '.join(names[:MOST_LISTED])}{more})"


def _left_out(scene: PreparedScene) -> dict[str, None]:
    """What files hold beside what is read from them, each once and in order: of sources, labels and split."""
    found = [note for source in scene.sources for note in source.left_out]
    labels = (scene.labels.own, *scene.labels.added) if isinstance(scene.labels, AddedLabels) else (scene.labels,)
    for reader in (*labels, scene.split):
        if isinstance(reader, RasterLabels | RasterSplit) and (note := header(reader.file).left_out) is not None:
            found.append(note)
    return dict.fromkeys(found)


def check_data(scenes: Sequence[PreparedScene], executor: Executor) -> None:
    """Check that every source has a valid pixel; reads a few small windows of each, and all of one that has none there.

    Raises:
        InputError: a source has none, with the numbers of the bands without data; or a file cannot be read.
    """
    for scene in scenes:
        shape = scene.template.shape
        for source in (scene.sources[i] for i in sources_without_data(executor, scene.sources, shape)):
            bands = bands_without_data(executor, source, shape)
            if not bands:
                why = "no pixel has data in all its bands, or its mask excludes those that have"
                if source.declared.periods:
                    empty = periods_without_data(executor, source, shape)
                    why = f"no pixel is clear in {', '.join(empty[:MOST_LISTED])}" if empty else NEVER_ALL
                if source.declared.derive:
                    why += ", or `derive` divides by zero or gives no finite number there"
            elif len(bands) == source.bands_read:
                why = "all its pixels are nodata or not finite"
            else:
                listed = ", ".join(bands[:MOST_LISTED]) + (", ..." if len(bands) > MOST_LISTED else "")
                lacking = f"band {listed} has no data" if len(bands) == 1 else f"bands {listed} have no data"
                why = f"{lacking}, and a pixel is valid only if all bands are; select the others with `bands`"
            files = ", ".join(str(file) for file in source.declared.files[:5])
            where = "on the reference grid" if scene.area is None else "in the area"
            raise InputError(
                f"scene {scene.name!r}: source {source.declared.name!r} has no valid pixel {where} ({files}): "
                f"{why}. Check `nodata`, `mask` and the files."
            )


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
        needed = memory(scene, min(workers, len(scene.shards_read)))
        if needed > available:
            side = scene.template.shard
            remedy = "prepare.shard" if side > 128 else "the band count, or use more memory or a cluster (prepare.engine)"
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
    if free is not None and sum(scene.uncompressed_bytes for scene in scenes) > LARGE * free:
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
