"""Build patch stores: one task per shard reads its window of all inputs once, writes it, and records what it wrote.

A record is written after its shard, so an interrupted build resumes with the shards that have none. `verify` checks a
finished store against its records, which are gathered in one file next to it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.areas.area_grid import outline
from pipeline.codes import CODES, UNLABELLED
from pipeline.grid import Window, windows
from pipeline.io import checksums, storage, zarr_store
from pipeline.parallel.executor import Executor
from pipeline.rasters.header import RasterFile
from pipeline.scenes.geometries import AreaMask
from pipeline.scenes.labels import OpenLabels, RasterLabels
from pipeline.scenes.source import AlignedSource
from pipeline.scenes.split import AddedLabels, RasterSplit, Split
from pipeline.store.patch_store import known_bands, present, usable
from pipeline.store.quantiles import QuantileSketch, merge
from pipeline.store.records import Objects, ShardRecord, StoreRecords, records_folder
from pipeline.store.scene_quantiles import SPREAD, spread_windows_in
from pipeline.store.shard_writer import ShardWriter
from pipeline.store.template import StoredSource, Template, create_store, shard_side


@dataclass(frozen=True)
class PreparedScene:
    """A scene with everything to write to its store, checked but not yet read. Instances are sent to other machines."""

    name: str
    grid: GeoBox
    sources: tuple[AlignedSource, ...]
    labels: OpenLabels
    split: Split
    classes: tuple[ClassName, ...]
    shard: int | None = None  #: side of a shard; None to choose it automatically
    area: AreaMask | None = None  #: outside which its sources and labels have no data
    notes: tuple[str, ...] = ()  #: for the user, on its area and grid

    @property
    def pixels(self) -> int:
        """The number of reference pixels in its area, or of all."""
        return int(np.prod(self.grid.shape)) if self.area is None else self.area.pixels

    @cached_property
    def template(self) -> Template:
        """The template that the store is created from."""
        stored = tuple(
            StoredSource(
                s.declared.name,
                s.bands,
                s.declared.missing,
                s.scale,
                s.declared.kept,
                s.declared.planes,
                s.declared.gaps,
            )
            for s in self.sources
        )
        dtypes = tuple(s.dtype for s in self.sources)
        template = Template(self.grid, stored, dtypes, self.classes, self.shard or 0)
        return replace(template, shard=self.shard or shard_side(template.shape, template.bytes_per_pixel))

    @property
    def files(self) -> list[RasterFile]:
        """The rasters that its shards are read from, with their stamps; vector labels are in memory."""
        files = [file for source in self.sources for file in source.files]
        read = (self.labels.own, *self.labels.added) if isinstance(self.labels, AddedLabels) else (self.labels,)
        files += [labels.file for labels in read if isinstance(labels, RasterLabels)]
        return files + ([self.split.file] if isinstance(self.split, RasterSplit) else [])

    @property
    def shards(self) -> list[Window]:
        """The windows of the scene's shards."""
        template = self.template
        return windows(template.shape, template.shard)

    @cached_property
    def shards_read(self) -> list[Window]:
        """The windows of the shards that files are read for: those that the area touches."""
        return [window for window in self.shards if self.area is None or self.area.touches(window)]

    @property
    def uncompressed_bytes(self) -> int:
        """Size of the shards that files are read for; the others hold nothing and take almost no space."""
        return sum(w.height * w.width for w in self.shards_read) * self.template.bytes_per_pixel


@dataclass(frozen=True)
class _Target:
    """The destination of a scene's store."""

    scene: PreparedScene
    url: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def record(self, window: Window) -> str:
        return storage.join(records_folder(self.url), f"{window.y}_{window.x}.json")


def build_store(
    executor: Executor,
    scene: PreparedScene,
    url: str,
    *,
    fingerprint: str,
    each: Callable[[Sequence[Window]], None] = lambda _: None,
) -> StoreRecords:
    """Build a scene's store, or the missing part of it if the existing part has the same `fingerprint`.

    `each` is called with the shards that are there already, and then with each one that is completed.

    Raises:
        InputError: a file cannot be read. Completed shards are kept, and the same call resumes from there.
    """
    target = _Target(scene, url)
    records, template = _resume(target, fingerprint)
    if template is None:
        discard_partial(url)
        recorder = zarr_store.ChecksumStore.at(url)
        create_store(
            recorder,
            scene.template,
            fingerprint=fingerprint,
            outline=None if scene.area is None else outline(scene.area),
        )
        template = recorder.written
        storage.write_json(storage.join(records_folder(url), "template.json"), template)
    each([record.window for record in records])

    done = {record.window for record in records}
    missing = [window for window in scene.shards if window not in done]

    def take(record: ShardRecord) -> None:
        records.append(record)
        each([record.window])

    sketches = executor.reduce(fill_shard, target, missing, take, merge) or _empty_sketches(scene)
    return StoreRecords(fingerprint, template, records, sketches, frozenset(missing))


def in_order(attributes: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether the store with these attributes has its sources in this order, which fingerprints do not contain."""
    return [source["name"] for source in attributes["mibf:sources"]] == list(names)


def read_finished(url: str, records: str, *, fingerprint: str, sources: Sequence[str]) -> StoreRecords | None:
    """The records of a finished store with this fingerprint and these sources, in order; None if there is no such store."""
    try:
        attributes = storage.read_json(storage.join(url, "zarr.json"))["attributes"]
        found = StoreRecords.read(records)
        ordered = in_order(attributes, sources)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, InputError):
        return None
    return found if ordered and attributes.get("mibf:fingerprint") == found.fingerprint == fingerprint else None


def discard_partial(url: str) -> None:
    """Remove a store in progress with its records."""
    storage.remove(records_folder(url))
    storage.remove(url)


def _resume(target: _Target, fingerprint: str) -> tuple[list[ShardRecord], Objects | None]:
    """The records that an interrupted build left, and the template's objects; None if it left nothing usable."""
    try:
        attributes = storage.read_json(storage.join(target.url, "zarr.json"))["attributes"]
        if attributes["mibf:fingerprint"] != fingerprint or attributes["mibf:shard"] != target.scene.template.shard:
            return [], None
        if not in_order(attributes, [source.name for source in target.scene.template.sources]):
            return [], None
        described = storage.read_json(storage.join(records_folder(target.url), "template.json"))
        template = {key: (int(size), str(digest)) for key, (size, digest) in described.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent or damaged
        return [], None
    found = []
    there = set(storage.names(records_folder(target.url)))
    sizes = checksums.object_sizes(target.url)
    # The attributes, which were read above, and the samples are written again at the end.
    kept = {key: size for key, (size, _) in template.items() if key != "zarr.json" and not key.startswith("samples/")}
    if any(sizes.get(key) != size for key, size in kept.items()):
        return [], None
    for window in target.scene.shards:
        url = target.record(window)
        if url.rsplit("/", 1)[-1] in there:
            try:
                record = ShardRecord.from_json(storage.read_json(url))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # truncated: the shard is written again
            if all(sizes.get(key) == size for key, (size, _) in record.objects.items()):
                found.append(record)
    return found, template


def _empty_sketches(scene: PreparedScene) -> dict[str, QuantileSketch]:
    """Empty histograms for a scene's sources."""
    return {prefix + s.declared.name: QuantileSketch(s.bands, s.dtype) for prefix in ("", SPREAD) for s in scene.sources}


def fill_shard(target: _Target, window: Window) -> tuple[ShardRecord, dict[str, QuantileSketch]]:
    """Write one shard of a scene's store and its record. Running it twice leaves the same bytes.

    Return the record, and the values by source: at the shard's training samples, and in its spread windows.
    """
    started = time.monotonic()
    arrays, valid = shard_arrays(target.scene, window)
    between = time.monotonic()
    objects = _writer(target.url, target.token).write(window, arrays)
    seconds = round(between - started, 3), round(time.monotonic() - between, 3)
    record = ShardRecord(window, objects, valid, *seconds, _observations(target.scene, arrays))
    storage.write_json(target.record(window), record.to_json())
    return record, _sketched(target.scene, window, arrays)


def _sketched(scene: PreparedScene, shard: Window, arrays: dict[str, NDArray[Any]]) -> dict[str, QuantileSketch]:
    """Count a shard's values at its training samples and in its spread windows, while they are in memory."""
    trained = arrays["split"] == CODES["train"]
    spread = spread_windows_in(shard, scene.template.shape)
    sketches = _empty_sketches(scene)
    for source in scene.template.sources if spread or trained.any() else ():
        values, valid = arrays[f"sources/{source.name}"], arrays[f"valid/{source.name}"].view(bool)
        known = known_bands(source, valid, arrays[f"counts/{source.name}"]) if source.is_filled else valid
        if trained.any():
            sketches[source.name].add_at(values, known, trained)
        if spread:
            _count_spread(sketches[SPREAD + source.name], values, known, shard, spread, scale=source.scale)
    return sketches


def _count_spread(
    sketch: QuantileSketch,
    values: NDArray[Any],
    known: NDArray[np.bool_],
    shard: Window,
    spread: Sequence[Window],
    *,
    scale: int,
) -> None:
    """Count the values of some windows of a shard, all of a band at once: every call for floats has a high fixed cost."""
    boxes = [
        tuple(
            slice((part.start - first) * scale, (part.stop - first) * scale)
            for part, first in zip(window.slices, (shard.y, shard.x), strict=True)
        )
        for window in spread
    ]
    for number, band in enumerate(sketch.bands):
        own = known[number] if known.ndim == 3 else known
        band.add(np.concatenate([values[number][box][own[box]] for box in boxes]))


def _observations(scene: PreparedScene, arrays: dict[str, NDArray[Any]]) -> dict[str, list[list[int]]]:
    """For every period of each source of several dates, the number of a shard's pixels with 1, 2, ... clear dates."""
    counts = {s.name: arrays[f"counts/{s.name}"] for s in scene.template.sources if s.periods}
    return {name: [np.bincount(plane.ravel())[1:].tolist() for plane in planes] for name, planes in counts.items()}


@lru_cache(maxsize=2)
def _writer(url: str, token: str) -> ShardWriter:
    """The writer of a build, one per process, so that it opens the store's arrays once."""
    del token  # distinguishes builds at the same URL
    return ShardWriter(zarr_store.ChecksumStore.at(url))


def shard_arrays(scene: PreparedScene, window: Window) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """The content of a window in every array of a scene's store, by array path; and the number of valid pixels per source.

    Raises:
        InputError: a file cannot be read.
    """
    arrays: dict[str, NDArray[Any]] = {}
    valid, there = {}, {}
    for source, stored in zip(scene.sources, scene.template.sources, strict=True):
        name = source.declared.name
        arrays[f"sources/{name}"], own, counts = source.observe(window)
        if counts is not None:
            arrays[f"counts/{name}"] = counts
        arrays[f"valid/{name}"] = own.view(np.uint8)
        valid[name] = int(own.sum())
        there[name] = present(stored, own)
    labels = scene.labels.read(window)
    # A sample has a label, and data as required by the sources' rules.
    may_be = usable(scene.template.sources, there)
    arrays["labels"] = labels
    arrays["split"] = scene.split.codes(window, labels) * (may_be & (labels != UNLABELLED))
    return arrays, valid
