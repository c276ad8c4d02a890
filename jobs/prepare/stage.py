"""Prepare stage: build patch stores from scenes. Dask reads, aligns and writes whole shards, on local threads or a cluster.

All checks that need no written data run before the first byte is written. An interrupted run is resumed. The stores of an
earlier prepare are replaced only after everything has succeeded.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from jobs.config.config import Config
from jobs.prepare.added_labels import count_added
from jobs.prepare.engine import files_needed, make_executor
from jobs.prepare.preflight import check_data, check_memory, check_room, file_remarks
from jobs.prepare.reading_progress import reading_bar
from jobs.prepare.scenes import buffer_pixels, open_scenes, subset_counts
from jobs.prepare.summary import Written, split_lines, store_figures, store_lines
from jobs.runtime.progress import progress_bar, warn
from jobs.search.coverage import report_items
from jobs.workflow.errors import StageError
from jobs.workflow.found_items import found_items
from jobs.workflow.manifest import StageResult, read_manifest
from jobs.workflow.runner import invalidate
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from mibf.normalization import Scaling, scaling_to_json
from pipeline.codes import SUBSETS, Subset
from pipeline.grid import Window
from pipeline.io import checksums, storage
from pipeline.io.lease import Lease
from pipeline.io.sidecars import Listings
from pipeline.maps.drift import describe_drift, list_bands, matching_advice, measure_drift, unmatched
from pipeline.parallel.executor import ClusterLostError, Executor, ThreadExecutor
from pipeline.rasters.header import UnreadableError
from pipeline.sampling.store_catalog import write_catalog
from pipeline.scenes.coregistration import TOO_FAR, Shift, describe_shift, measure_shifts
from pipeline.scenes.split import AddedLabels
from pipeline.store.build import PreparedScene, build_store, discard_partial, read_finished
from pipeline.store.patch_store import PatchStore
from pipeline.store.quantiles import QuantileSketch, fit_scaling, merge
from pipeline.store.reading import Reading, reading
from pipeline.store.sample_statistics import collect_statistics
from pipeline.store.scene_quantiles import LEAST_PIXELS, Quantiles, quantiles, references, sketch_scene
from pipeline.store.source_overlap import measure_source_overlap


def prepare(config: Config, workspace: Workspace, fingerprint: str, lease: Lease, *, any_size: bool = False) -> StageResult:
    """Write every scene's patch store, the sample counts of the split and the normalization limits.

    Raises:
        InputError: as `open_scenes`, for areas of `any_size` or not; or there is no room, no memory or no data.
    """
    read = found_items(config)
    items = report_items(read)  # before any file is opened
    with make_executor(config.prepare, files=files_needed(read, workspace)) as executor:
        scenes = open_scenes(config, executor, any_size=any_size)
        added = [
            count_added(executor, section, scene.labels, scene.template.shape, scene.classes)
            for section, scene in zip(read.scenes, scenes, strict=True)
            if isinstance(scene.labels, AddedLabels)
        ]
        if isinstance(executor, ThreadExecutor):
            check_memory(scenes, executor.workers)
        reusable = sum(sum(checksums.object_sizes(_partial_store(workspace, scene)).values()) for scene in scenes)
        check_room(scenes, workspace.url, written=reusable)
        check_data(scenes, executor)
        shifts = {scene.name: _measure_shifts(scene, executor) for scene in scenes}
        for scene in scenes:
            for note in [*scene.labels.notes, *file_remarks(scene)]:
                warn(note)
        with storage.folder_in_use(workspace.stores), _as_stage_errors(workspace):
            try:
                written = [_write(scene, workspace, config, executor, fingerprint, lease) for scene in scenes]
                counts, scaling = _fit_normalization(config, written) if config.labelled else ({}, {})
                _check_unchanged(scenes)
            except InputError as error:
                if isinstance(error, UnreadableError) and any(map(_is_remote, scenes)):
                    raise  # the server may recover; the same command then resumes
                for scene in scenes:  # refused input leaves no files behind
                    discard_partial(_partial_store(workspace, scene))
                raise
            # Everything succeeded: only now replace the stores of an earlier prepare.
            invalidate(workspace, "prepare", lease)
            for w in written:
                if w.url != workspace.store(w.scene.name):
                    lease.check()
                    w.records.write(workspace.records(w.scene.name))
                    lease.check()
                    storage.move(w.url, workspace.store(w.scene.name))
                lease.check()
                discard_partial(_partial_store(workspace, w.scene))
    _warn_about_bands(scaling)
    lease.check()
    storage.write_json(workspace.scaling, scaling_to_json(scaling))
    figures = _write_figures(config, workspace, written, counts, fingerprint, lease)
    for w in written:
        _warn_about_shared_pixels(config, w)
        _warn_about_drift(config, workspace, w, scaling)
    lines = [line for w in written for line in store_lines(w, shifts[w.scene.name])] + split_lines(config, figures) + added
    figures["stores"] = {w.scene.name: store_figures(w, shifts[w.scene.name]) for w in written}
    outputs = [*(workspace.store(scene.name) for scene in scenes), workspace.split, workspace.scaling]
    return StageResult(figures | ({"items": items} if items else {}), lines, outputs)


def _write_figures(
    config: Config,
    workspace: Workspace,
    written: Sequence[Written],
    counts: Mapping[Subset, dict[str, int]],
    fingerprint: str,
    lease: Lease,
) -> dict[str, object]:
    """Write what later stages read of all stores: the figures of the split, which are returned, and the catalog."""
    figures: dict[str, object] = {
        "method": config.split.method,
        "counts": counts,
        "overlap": {w.scene.name: w.overlapping for w in written},
        "source_overlap": {w.scene.name: {name: o.share for name, o in w.overlap.items()} for w in written},
        "buffer": buffer_pixels(config),
    }
    if len(written) > 1:
        figures["scenes"] = {w.scene.name: _samples(w) for w in written}
    lease.check()
    storage.write_json(workspace.split, figures)
    lease.check()
    stores = {w.scene.name: workspace.store(w.scene.name) for w in written}
    write_catalog(workspace.catalog, stores, fingerprint=fingerprint, report=warn)
    return figures


@contextmanager
def _as_stage_errors(workspace: Workspace) -> Iterator[None]:
    """Convert a full disk or a lost cluster to `StageError`; finished shards are kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StageError(
            f"{workspace.stores}: the disk is full ({error.strerror}). Free some space, or choose another workspace; the "
            "same command resumes from the finished shards."
        ) from error
    except ClusterLostError as error:
        raise StageError(f"{error}; the same command resumes from the finished shards.") from error


def _check_unchanged(scenes: Sequence[PreparedScene]) -> None:
    """Check that no raster was replaced while it was read: a store would hold parts of two versions.

    Raises:
        InputError: a raster has changed since it was opened.
    """
    listings = Listings()
    files = dict.fromkeys(file for scene in scenes for file in scene.files)
    changed = [str(file) for file in files if checksums.input_fingerprint(file.url, listings) != file.stamp]
    if changed:
        listed = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise InputError(f"{listed} changed while being read; run `mibf prepare` again when no program writes the files.")


def _is_remote(scene: PreparedScene) -> bool:
    return not all(storage.is_local(file.url) for source in scene.sources for file in source.declared.files)


def _partial_store(workspace: Workspace, scene: PreparedScene) -> str:
    """Return the URL of a scene's store while it is being written."""
    return f"{workspace.store(scene.name)}.new"


def _measure_shifts(scene: PreparedScene, executor: Executor) -> dict[str, Shift]:
    """Measure the coregistration shifts between sources; warn of large ones."""
    found = measure_shifts(executor, scene.sources, scene.template.shape)
    first = scene.sources[0].declared.name
    for name, shift in found.items():
        if shift.credible and shift.distance >= TOO_FAR:
            warn(f"{scene.name}: {describe_shift(name, first, shift)}; check the georeferencing of the files")
    return found


def _write(
    scene: PreparedScene, workspace: Workspace, config: Config, executor: Executor, fingerprint: str, lease: Lease
) -> Written:
    url, final = _partial_store(workspace, scene), workspace.store(scene.name)
    skipped = [list(map(str, source.declared.skipped)) for source in scene.sources]
    if any(skipped):  # shards that another run wrote are of the same items
        fingerprint = checksums.digest([fingerprint, skipped])
    records = None
    if read_manifest(workspace, "prepare") is None:  # the store may have been moved there just before an interruption
        names = [source.declared.name for source in scene.sources]
        records = read_finished(final, workspace.records(scene.name), fingerprint=fingerprint, sources=names)
    if records is not None:
        url = final
    else:
        reads = reading(scene)
        with reading_bar(f"{scene.name}: write store", sum(reads.values(), Reading()), workers=executor.workers) as bar:

            def each(shards: Sequence[Window]) -> None:
                lease.check()  # shards of a run that lost the lease must not reach the store of its successor
                bar.advance(sum((reads[shard] for shard in shards), Reading()))

            lease.check()
            records = build_store(executor, scene, url, fingerprint=fingerprint, each=each)
    with progress_bar(f"{scene.name}: count samples", len(scene.shards), unit="shards") as advance:
        found = collect_statistics(executor, url, patch=config.model.patch, sketched=records.sketched, each=advance)
        merge(found.sketches, records.sketches)
    overlap = measure_source_overlap(executor, url, scene.sources, patch=config.model.patch) if found.tests else {}
    records = records.with_samples(url, found.samples).with_values(url, found.pop_spread())
    entire: dict[str, QuantileSketch] = {}
    if config.prepare.histogram_matching:
        with progress_bar(f"{scene.name}: count values", len(scene.shards), unit="shards") as advance:
            entire = sketch_scene(executor, url, config.prepare.histogram_matching, each=advance)
        records = records.with_quantiles(url, _quantiles(scene.name, entire))
    # Without the counts by window: those of ten thousand scenes would not fit in memory.
    return Written(scene, url, records, found.samples.sum(axis=(2, 3)), found.overlap, found.sketches, overlap, entire)


def _quantiles(scene: str, entire: Mapping[str, QuantileSketch]) -> Quantiles:
    """Return the quantiles of a scene's matched sources; warn of sources with too few pixels."""
    found = quantiles(entire)
    for name in (name for name, own in found.items() if own is None):
        warn(f"{scene}: source {name!r} has fewer than {LEAST_PIXELS:,} valid pixels, so its values are not matched")
    return found


def _fit_normalization(config: Config, written: Sequence[Written]) -> tuple[dict[Subset, dict[str, int]], Scaling]:
    """Return the checked sample counts per subset and class over all scenes, and the limits fitted on training samples."""
    samples = np.sum([w.samples for w in written], axis=0)
    counts = subset_counts(config, written[0].scene.classes, samples)
    if not config.trainable:
        return counts, {}
    total: dict[str, QuantileSketch] = {}
    for w in written:
        merge(total, w.sketches)
    fitted = fit_scaling(total)
    entire: dict[str, QuantileSketch] = {}
    for w in written:
        if _samples(w)["train"]:
            merge(entire, w.entire)
    return counts, fitted | {name: replace(fitted[name], reference=own) for name, own in references(entire).items()}


def _warn_about_bands(scaling: Scaling) -> None:
    for name, bands in scaling.items():
        if bands.constant.any():
            listed = list_bands((np.nonzero(bands.constant)[0] + 1).tolist())
            are = "is" if bands.constant.sum() == 1 else "are"
            warn(f"source {name!r}: {listed} {are} constant over the training pixels and set to 0")


def _warn_about_shared_pixels(config: Config, w: Written) -> None:
    """Warn of the source whose file pixels most test patches share with training patches, where a buffer prevents it."""
    if config.split_block is None or not w.overlap:
        return
    name, worst = max(w.overlap.items(), key=lambda pair: pair[1].share)
    if worst.shared:
        buffer = config.model.patch - 1 + max(overlap.reach for overlap in w.overlap.values())
        warn(
            f"{w.scene.name}: {worst.share:.2%} of test patches hold a pixel of source {name!r} that a training patch "
            f"holds; set split.buffer to {buffer} (with split.block above {2 * buffer}) so that none does"
        )


def _samples(w: Written) -> dict[Subset, int]:
    """Return the number of samples of a scene in each subset."""
    return dict(zip(SUBSETS, w.samples.sum(axis=1).tolist(), strict=True))


def _warn_about_drift(config: Config, workspace: Workspace, w: Written, scaling: Scaling) -> None:
    """Warn of a scene for validation or testing whose values are unlike those of the training scenes."""
    samples = _samples(w)
    if not scaling or samples["train"] or not any(samples.values()) or config.map.drift == "ignore":
        return
    store = PatchStore(workspace.store(w.scene.name))
    drifts = measure_drift(store, unmatched(store, scaling))
    far = describe_drift(drifts, config.map.drift_distance)
    if far is not None:
        advice = matching_advice(drifts, config.map.drift_distance)
        warn(f"{w.scene.name}: its values differ from those of the training scenes: {far}{advice}")
