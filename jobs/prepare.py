"""prepare: scenes to patch stores. Dask reads, aligns and writes whole shards, on this machine's threads or on a cluster.

Everything that can be refused before the first byte is written is refused then. What was begun and not finished is gone
on with; what an earlier prepare made gives way only when all is well.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from jobs.config import Config
from jobs.plan import check_memory, check_room, remarks_of
from jobs.progress import bar, counted, warn
from jobs.scenes import buffer_of, open_scenes, subset_counts
from jobs.stages import Outcome, StageError, begin, read_manifest
from jobs.workspace import Workspace
from mibf.errors import InputError
from mibf.scaling import Scaling, scaling_to_json
from pipeline import storage
from pipeline.engine import ClusterLostError, Engine, engine
from pipeline.fill import OpenScene, Records, discard, fill, finished
from pipeline.fit import Sketch, fit_scaling, merge
from pipeline.lease import Lease
from pipeline.raster import UnreadableError
from pipeline.register import TOO_FAR, told
from pipeline.register import shifts as shifts_of
from pipeline.shift import Shift
from pipeline.split import SUBSETS, Subset
from pipeline.survey import Survey, survey

#: Shares of pixels with data below which a source is told of.
COVERED = 0.999


@dataclass(frozen=True)
class _Written:
    """A scene whose store is whole but not in its place yet."""

    scene: OpenScene
    url: str
    records: Records
    found: Survey


def prepare(config: Config, workspace: Workspace, fingerprint: str, lease: Lease) -> Outcome:
    """Write every scene's patch store, the counts of the split and the scaling."""
    with engine(config.prepare.scheduler) as workers:
        scenes = open_scenes(config, workers)
        if config.prepare.scheduler is None:
            check_memory(scenes, workers.workers)
        begun = sum(sum(storage.sizes(_staged(workspace, scene)).values()) for scene in scenes)
        check_room(scenes, workspace.url, begun=begun)
        shifts = {scene.name: _measured(scene, workers) for scene in scenes}
        for scene in scenes:
            for note in [*scene.labels.notes, *remarks_of(scene)]:
                warn(note)
        with storage.folder_in_use(workspace.stores), _told(workspace):
            try:
                written = [_write(scene, workspace, config, workers, fingerprint) for scene in scenes]
                counts, scaling = _fitted(config, written) if config.labelled else ({}, {})
            except InputError as error:
                if isinstance(error, UnreadableError) and any(map(_is_remote, scenes)):
                    raise  # a server may answer the next time: the same command then goes on
                for scene in scenes:  # what is refused leaves nothing behind
                    discard(_staged(workspace, scene))
                raise
            # All is well: only now does what an earlier prepare made give way.
            begin(workspace, "prepare", lease)
            for w in written:
                if w.url != workspace.store(w.scene.name):
                    w.records.write(workspace.records(w.scene.name))
                    storage.move(w.url, workspace.store(w.scene.name))
                discard(_staged(workspace, w.scene))
    _warn_of_bands(scaling)
    storage.write_json(workspace.scaling, scaling_to_json(scaling))
    overlap = {w.scene.name: w.found.overlap for w in written}
    figures = {"method": config.split.method, "counts": counts, "overlap": overlap, "buffer": buffer_of(config)}
    storage.write_json(workspace.split, figures)
    lines = [line for w in written for line in _store_lines(w, shifts[w.scene.name])]
    lines += _split_lines(config, figures) if config.labelled else ["no labels: nothing to train on, and no scaling"]
    stores = [workspace.store(scene.name) for scene in scenes]
    stored = {w.scene.name: _figures(w, shifts[w.scene.name]) for w in written}
    return Outcome(figures | {"stores": stored}, lines, [*stores, workspace.split, workspace.scaling])


@contextmanager
def _told(workspace: Workspace) -> Iterator[None]:
    """Tell of what stops the writing for want of a disk or a cluster; what is written stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StageError(
            f"{workspace.stores}: the disk is full ({error.strerror}). Make room there, or choose another "
            "workspace; the same command goes on from the shards that are whole."
        ) from error
    except ClusterLostError as error:
        raise StageError(f"{error}; the same command goes on from the shards that are whole.") from error


def _is_remote(scene: OpenScene) -> bool:
    return not all(storage.is_local(file.url) for source in scene.sources for file in source.declared.files)


def _staged(workspace: Workspace, scene: OpenScene) -> str:
    """Where a scene's store is while it is in work."""
    return f"{workspace.store(scene.name)}.new"


def _measured(scene: OpenScene, workers: Engine) -> dict[str, Shift]:
    """How the sources lie on each other; what lies off is warned of."""
    found = shifts_of(workers, scene)
    first = scene.sources[0].declared.name
    for name, shift in found.items():
        if shift.credible and shift.distance >= TOO_FAR:
            warn(f"{scene.name}: {told(name, first, shift)}; check how the files were registered")
    return found


def _write(scene: OpenScene, workspace: Workspace, config: Config, workers: Engine, fingerprint: str) -> _Written:
    url, final = _staged(workspace, scene), workspace.store(scene.name)
    records = None
    if read_manifest(workspace, "prepare") is None:  # it may have been put in its place just before an interruption
        records = finished(final, workspace.records(scene.name), fingerprint=fingerprint)
    if records is not None:
        url = final
    else:
        with bar(f"{scene.name}: write the store", len(scene.shards), unit="shards") as advance:
            records = fill(workers, scene, url, fingerprint=fingerprint, each=advance)
    for source in scene.sources:
        if not records.valid(source.declared.name):
            listed = ", ".join(str(file) for file in source.declared.files[:5])
            raise InputError(
                f"scene {scene.name!r}: source {source.declared.name!r} has no data in any pixel ({listed}): all are nodata "
                "or not finite in a band, or left out by its mask. Check `nodata`, `mask` and the files."
            )
    with bar(f"{scene.name}: samples, scaling", len(scene.shards), unit="shards") as advance:
        found = survey(workers, url, patch=config.model.patch, sketched=records.sketched, each=advance)
        merge(found.sketches, records.sketches)
    return _Written(scene, url, records.with_samples(url, found.samples), found)


def _fitted(config: Config, written: Sequence[_Written]) -> tuple[dict[Subset, dict[str, int]], Scaling]:
    """The samples of each subset and class over all scenes, checked, and the scaling fitted to those that train."""
    samples = np.sum([w.found.samples.sum(axis=(2, 3)) for w in written], axis=0)
    counts = subset_counts(written[0].scene.classes, samples, validated=config.validated)
    total: dict[str, Sketch] = {}
    for w in written:
        merge(total, w.found.sketches)
    return counts, fit_scaling(total)


def _warn_of_bands(scaling: Scaling) -> None:
    for name, bands in scaling.items():
        if bands.constant.any():
            listed = ", ".join(str(b + 1) for b in np.nonzero(bands.constant)[0])
            warn(f"source {name!r} does not vary over the training pixels in band {listed}; the band is taken as 0")


def _coverage(w: _Written) -> dict[str, float]:
    """The share of a scene's pixels where each source has data."""
    return {s.declared.name: w.records.valid(s.declared.name) / s.grid.shape[0] / s.grid.shape[1] for s in w.scene.sources}


def _figures(w: _Written, shifts: dict[str, Shift]) -> dict[str, object]:
    template = w.scene.template
    rows, columns = template.shape
    return {
        "shape": [rows, columns],
        "shard": template.shard,
        "shards": len(w.records.shards),
        "objects": len(w.records.objects),
        "bytes": w.records.stored_bytes,
        "uncompressed_bytes": rows * columns * template.bytes_per_pixel,
        "coverage": _coverage(w),
        "shifts": {name: asdict(shift) | {"credible": shift.credible} for name, shift in shifts.items()},
        "read_seconds": round(sum(s.read_seconds for s in w.records.shards), 1),
        "write_seconds": round(sum(s.write_seconds for s in w.records.shards), 1),
    }


def _store_lines(w: _Written, shifts: dict[str, Shift]) -> list[str]:
    template = w.scene.template
    rows, columns = template.shape
    covered = _coverage(w)
    share = w.records.stored_bytes / (rows * columns * template.bytes_per_pixel)
    lines = [
        f"{w.scene.name}: {rows} x {columns} pixels in {counted(len(w.records.shards), 'shards')} of {template.shard}, "
        f"{w.records.stored_bytes / 1e6:,.1f} MB ({share:.0%} of the pixels' size)"
    ]
    for source in w.scene.sources:
        name = source.declared.name
        how = sorted({str(part.alignment) for part in source.parts})
        at = "" if source.scale == 1 else f", kept {source.scale} times as fine"
        less = "" if covered[name] >= COVERED else f"; data in {covered[name]:.1%} of the pixels"
        lines.append(f"  {name}: {counted(source.bands, 'bands')} of {source.dtype}, {' and '.join(how)}{at}{less}")
    first = w.scene.sources[0].declared.name
    lines += [f"  {told(name, first, shift)}" for name, shift in shifts.items()]
    return lines


def _split_lines(config: Config, figures: Mapping[str, object]) -> list[str]:
    counts, overlap = figures["counts"], figures["overlap"]
    assert isinstance(counts, dict)
    assert isinstance(overlap, dict)
    lines = [f"samples by {config.split.method} split: {', '.join(f'{s} {sum(counts[s].values()):,}' for s in SUBSETS)}"]
    width = max(len(c.name) for c in config.classes)
    lines += [f"  {c.name:<{width}}" + "".join(f"  {counts[s][c.name]:>11,}" for s in SUBSETS) for c in config.classes]
    lines += [
        f"{name}: {share:.2%} of test patches overlap a training patch"
        for name, share in overlap.items()
        if np.isfinite(share)
    ]
    if config.split.method == "random":
        lines.append(
            "note: a random split leaks: test patches hold training pixels; figures compare methods and measure no map"
        )
    return lines
