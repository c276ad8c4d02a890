"""prepare: scenes to patch stores. Dask reads, aligns and writes whole shards on this machine's threads.

Everything that can be refused is refused before the first byte is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import dask
import dask.array as da
import numpy as np
from dask.callbacks import Callback
from numpy.typing import NDArray
from odc.geo.crs import CRS, CRSError
from odc.geo.geobox import GeoBox

from jobs.config import PALETTE, BlocksSection, Config, SceneSection
from jobs.progress import bar, say
from jobs.stages import Outcome, begin
from jobs.workspace import Workspace
from mibf.bundle import ClassName
from mibf.errors import InputError
from mibf.scaling import scaling_to_json
from pipeline import storage
from pipeline.fit import fit_scaling
from pipeline.grid import windows
from pipeline.labels import UNLABELLED, Labels, open_labels
from pipeline.scene import OpenSource, Source, open_source, reading, reference_grid
from pipeline.split import (
    CODES,
    SUBSETS,
    Blocks,
    Subset,
    assign_blocks,
    check_blocks,
    class_counts,
    open_split_raster,
)
from pipeline.store import CHUNK, SHARD, PatchStore, count_samples, fill, lay_down

Counts = dict[Subset, dict[str, int]]


@dataclass(frozen=True)
class OpenScene:
    """A scene with all that will be written of it, checked and still lazy."""

    name: str
    grid: GeoBox
    sources: dict[str, OpenSource]
    labels: da.Array
    split: da.Array


def class_names(config: Config) -> tuple[ClassName, ...]:
    """The declared classes with their colours."""
    return tuple(
        ClassName(c.id, c.name, (c.color or PALETTE[position % len(PALETTE)]).lower())
        for position, c in enumerate(config.classes)
    )


def prepare(config: Config, workspace: Workspace, fingerprint: str) -> Outcome:
    """Write every scene's patch store, the counts of the split and the scaling."""
    # GDAL's own cache would take 5 % of the memory for blocks that are read once.
    os.environ.setdefault("GDAL_CACHEMAX", "128")
    classes = class_names(config)
    if isinstance(config.split, BlocksSection):
        check_blocks(block=config.split.block, buffer=_buffer(config) or 0, patch=config.model.patch)
    scenes = _open_scenes(config, classes)
    staging = {scene.name: f"{workspace.store(scene.name)}.new" for scene in scenes}
    with storage.folder_in_use(workspace.stores):
        try:
            stores = [_write(scene, classes, staging[scene.name], fingerprint) for scene in scenes]
            counts, overlap = _count(config, classes, stores)
            with bar("fit the scaling", len(stores[0].sources), unit="sources") as advance:
                scaling = fit_scaling(stores, each=lambda: advance(1))
            # All is well: only now does what an earlier prepare made give way.
            begin(workspace, "prepare")
            for scene in scenes:
                storage.move(staging[scene.name], workspace.store(scene.name))
        finally:
            for url in staging.values():
                storage.remove(url)
    for name, bands in scaling.items():
        if bands.constant.any():
            listed = ", ".join(str(b + 1) for b in np.nonzero(bands.constant)[0])
            say(f"warning: source {name!r} does not vary over the training pixels in band {listed}; the band is taken as 0")
    storage.write_json(workspace.scaling, scaling_to_json(scaling))
    figures = {"method": config.split.method, "counts": counts, "overlap": overlap}
    storage.write_json(workspace.split, figures | {"buffer": _buffer(config)})
    lines = [f"{scene.name}: {scene.grid.shape[0]} x {scene.grid.shape[1]} pixels, {_listed(scene)}" for scene in scenes]
    lines += [
        f"samples: {', '.join(f'{s} {sum(counts[s].values()):,}' for s in SUBSETS)} ({config.split.method} split)",
        *(
            f"{n}: {share:.2%} of test patches overlap a training patch"
            for n, share in overlap.items()
            if np.isfinite(share)
        ),
    ]
    made = [workspace.store(scene.name) for scene in scenes]
    return Outcome(figures, lines, [*made, workspace.split, workspace.scaling])


def _count(config: Config, classes: tuple[ClassName, ...], stores: list[PatchStore]) -> tuple[Counts, dict[str, float]]:
    """Samples by subset and class over all scenes, checked, and each scene's share of overlapping test patches."""
    counts: Counts = {s: {c.name: 0 for c in classes} for s in SUBSETS}
    overlap = {}
    for scene, store in zip(config.scenes, stores, strict=True):
        with bar(f"{scene.name}: count samples", len(windows(store.shape, CHUNK)), unit="windows") as advance:
            own, overlap[scene.name] = count_samples(store, patch=config.model.patch, each=lambda: advance(1))
        for subset in SUBSETS:
            for c in classes:
                counts[subset][c.name] += own[subset][c.name]
    _check_counts(config, counts)
    return counts, overlap


def _listed(scene: OpenScene) -> str:
    return ", ".join(
        f"{n} ({s.values.sizes['band']} bands{', resampled' if s.resampled else ''})" for n, s in scene.sources.items()
    )


def _open_scenes(config: Config, classes: tuple[ClassName, ...]) -> list[OpenScene]:
    """Open and check all scenes and decide the split; reads labels, writes nothing."""
    opened: list[tuple[SceneSection, GeoBox, dict[str, OpenSource], da.Array]] = []
    for scene in config.scenes:
        declared = {name: Source(name, s.files, s.resampling, s.nodata, s.missing) for name, s in scene.sources.items()}
        grid = _grid(scene, declared)
        if min(grid.shape) < config.model.patch:
            raise InputError(f"scene {scene.name!r} is {grid.shape[0]} x {grid.shape[1]} pixels, smaller than a patch.")
        sources = {name: open_source(source, grid, chunk=SHARD) for name, source in declared.items()}
        if scene.labels is None:
            labels = da.full(tuple(grid.shape), UNLABELLED, dtype=np.uint8, chunks=(SHARD, SHARD))
        else:
            labels = open_labels(Labels(**scene.labels.model_dump()), grid, classes, chunk=SHARD)
        opened.append((scene, grid, sources, labels))
    for name in opened[0][2]:
        bands = {scene.name: sources[name].values.sizes["band"] for scene, _, sources, _ in opened}
        if len(set(bands.values())) > 1:
            raise InputError(f"source {name!r} differs between scenes in its number of bands: {bands}.")
    _check_apart([(scene, grid) for scene, grid, _, _ in opened if scene.labels is not None])
    splits = _splits(config, classes, [(grid, labels) for _, grid, _, labels in opened])
    return [
        OpenScene(scene.name, grid, sources, labels, split)
        for (scene, grid, sources, labels), split in zip(opened, splits, strict=True)
    ]


def _check_apart(scenes: list[tuple[SceneSection, GeoBox]]) -> None:
    """See that no ground is labelled in two scenes: one's test pixels would train in the other."""
    placed = [(scene.name, grid.geographic_extent) for scene, grid in scenes if grid.crs is not None]
    for (one, ground), (other, its_ground) in combinations(placed, 2):
        if ground.intersection(its_ground).area > 0:
            raise InputError(
                f"scenes {one!r} and {other!r} share labelled ground, so that test pixels of one would train in the other. "
                "Clip one of them, leave the labels off one, or give rasters of the same ground as sources of one scene."
            )


def _grid(scene: SceneSection, sources: dict[str, Source]) -> GeoBox:
    declared = scene.grid
    if declared.like is not None:
        return reference_grid(sources[declared.like])
    assert declared.crs is not None
    assert declared.bounds is not None
    try:
        crs = CRS(declared.crs)
    except CRSError as error:
        raise InputError(f"scene {scene.name!r}: grid.crs {declared.crs!r} is not known ({error}).") from error
    return GeoBox.from_bbox(declared.bounds, crs, resolution=declared.resolution, tight=True)


def _buffer(config: Config) -> int | None:
    """The pixels between subsets: patch - 1 unless more are asked for; unknown of a raster."""
    if not isinstance(config.split, BlocksSection):
        return None
    return config.model.patch - 1 if config.split.buffer is None else config.split.buffer


def _splits(config: Config, classes: tuple[ClassName, ...], scenes: list[tuple[GeoBox, da.Array]]) -> list[da.Array]:
    """The split of each scene, checked to leave every class a training pixel."""
    ids = tuple(c.id for c in classes)
    if not isinstance(config.split, BlocksSection):
        grid, labels = scenes[0]
        split = open_split_raster(config.split.url, grid, chunk=SHARD)
        with bar("count labels", 1, unit="scene"):
            trained = da.where(split == CODES["train"], labels, UNLABELLED)
            counts = class_counts(trained, block=max(grid.shape), ids=ids).reshape(-1, len(ids)).sum(axis=0)
        _check_classes(classes, counts)
        return [split]
    buffer = _buffer(config)
    assert buffer is not None
    block = config.split.block
    margin = -(-buffer // 2)
    with bar("count labels", len(scenes), unit="scenes") as advance:
        tables = []
        for _, labels in scenes:
            tables.append(class_counts(labels, block=block, ids=ids))
            advance(1)
    shares = config.split.fractions
    fractions: dict[Subset, float] = {"train": shares.train, "validation": shares.validation, "test": shares.test}
    flat = np.concatenate([table.reshape(-1, len(ids)) for table in tables])
    _check_classes(classes, flat.sum(axis=0))
    codes = assign_blocks(flat, fractions, seed=config.split.seed)
    splits, start, labelled = [], 0, {s: np.zeros(len(ids), np.int64) for s in SUBSETS}
    for (grid, labels), table in zip(scenes, tables, strict=True):
        stop = start + table.shape[0] * table.shape[1]
        blocks = Blocks(codes[start:stop].reshape(table.shape[:2]), block, margin)
        start = stop
        rows, columns = grid.shape
        split = blocks.over((rows, columns), chunk=SHARD)
        # A block's pixels are of one subset or of none: one pass over the labels counts all three.
        kept = class_counts(da.where(split != 0, labels, UNLABELLED), block=block, ids=ids)
        for subset in SUBSETS:
            labelled[subset] += kept[blocks.table == CODES[subset]].sum(axis=0)
        splits.append(split)
    _check_classes(classes, labelled["train"])
    for subset in SUBSETS:
        _check_subset(subset, int(labelled[subset].sum()))
    _warn_of_shares(classes, labelled, fractions)
    return splits


def _warn_of_shares(
    classes: tuple[ClassName, ...], labelled: dict[Subset, NDArray[np.int64]], fractions: dict[Subset, float]
) -> None:
    """Tell of classes that whole blocks and their buffer could not share out nearly as asked."""
    total = np.sum([labelled[s] for s in SUBSETS], axis=0)
    for position, c in enumerate(classes):
        shares = {s: labelled[s][position] / max(1, total[position]) for s in SUBSETS}
        if any(shares[s] < fractions[s] / 2 for s in SUBSETS):
            listed = ", ".join(f"{s} {labelled[s][position]:,}" for s in SUBSETS)
            say(f"warning: the blocks share {c.name} out unevenly ({listed} pixels); smaller ones (split.block) may help")


def _check_subset(subset: Subset, samples: int) -> None:
    if not samples:
        raise InputError(
            f"no sample in the {subset} subset; use smaller blocks (split.block), so that there are more of them, "
            "or other fractions."
        )


def _check_classes(classes: tuple[ClassName, ...], counts: NDArray[np.int64]) -> None:
    missing = [f"{c.id} ({c.name})" for c, count in zip(classes, counts, strict=True) if count == 0]
    if missing:
        raise InputError(
            f"no training pixel of class {', '.join(missing)}. Label some on training ground, change split.seed or "
            "split.block so that the class reaches it, or take the class out of `classes` (and its id into `labels.ignore`)."
        )


def _check_counts(config: Config, counts: Counts) -> None:
    """What is left once pixels without data are out: each class trains, and there is something to validate and test on."""
    classes = class_names(config)
    _check_classes(classes, np.array([counts["train"][c.name] for c in classes]))
    others: tuple[Subset, ...] = ("validation", "test")
    for subset in others:
        found = counts[subset]
        _check_subset(subset, sum(found.values()))
        absent = [name for name, count in found.items() if count == 0]
        if absent:
            say(f"warning: no {subset} sample of {', '.join(absent)}; its figures will be missing")


def _write(scene: OpenScene, classes: tuple[ClassName, ...], url: str, fingerprint: str) -> PatchStore:
    store = lay_down(url, grid=scene.grid, sources=scene.sources, classes=classes, fingerprint=fingerprint)
    shards = fill(store, sources=scene.sources, labels=scene.labels, split=scene.split)
    with bar(f"{scene.name}: write the store", len(shards), unit="shards") as advance, _ShardsDone(advance), reading():
        dask.compute(*shards, scheduler="threads")
    return store


class _ShardsDone(Callback):  # type: ignore[misc]  # dask is untyped
    """Tells a bar of each shard that Dask has finished."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        super().__init__(posttask=lambda key, *_: advance(1) if str(key).startswith("_together") else None)
