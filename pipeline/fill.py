"""Fill patch stores: one task a shard reads its window of everything once, writes it, and leaves a record of what it wrote.

A record is written after its shard, so that an interrupted filling goes on at the shards without one. The records of a
finished store, gathered in one file beside it, are what `verify` checks it by.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.bundle import ClassName
from mibf.errors import InputError
from pipeline import storage
from pipeline.engine import Engine
from pipeline.fit import Sketch, merge
from pipeline.grid import Window, windows
from pipeline.labels import UNLABELLED, OpenLabels
from pipeline.scene import OpenSource
from pipeline.split import CODES, Split
from pipeline.store import ShardWriter, StoredSource, Template, lay_down, present, shard_side, usable, write_samples


@dataclass(frozen=True)
class OpenScene:
    """A scene with all that will be written of it, checked and still on its files. Values travel to other machines."""

    name: str
    grid: GeoBox
    sources: tuple[OpenSource, ...]
    labels: OpenLabels
    split: Split
    classes: tuple[ClassName, ...]
    shard: int | None = None  #: side of a shard; None to choose it

    @cached_property
    def template(self) -> Template:
        """What the store is laid down by."""
        stored = tuple(StoredSource(s.declared.name, s.bands, s.declared.missing, s.scale) for s in self.sources)
        dtypes = tuple(s.dtype for s in self.sources)
        template = Template(self.grid, stored, dtypes, self.classes, self.shard or 0)
        side = self.shard or shard_side(template.shape, template.bytes_per_pixel)
        return Template(self.grid, stored, dtypes, self.classes, side)

    @property
    def shards(self) -> list[Window]:
        """The windows of its shards."""
        template = self.template
        return windows(template.shape, template.shard)


#: The size and SHA-256 of objects, by their key in a store.
Objects = dict[str, tuple[int, str]]


@dataclass(frozen=True)
class ShardRecord:
    """What was written of one shard."""

    window: Window
    objects: Objects
    valid: dict[str, int]  #: by source, its pixels with data
    read_seconds: float = 0.0
    write_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return vars(self) | {"window": vars(self.window)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardRecord:
        """The record that `to_json` wrote."""
        objects = {key: (int(size), str(digest)) for key, (size, digest) in value["objects"].items()}
        return cls(**{**value, "window": Window(**value["window"]), "objects": objects})


@dataclass(frozen=True)
class Filled:
    """A shard that was written just now: its record, and the values at its training samples by source."""

    record: ShardRecord
    sketches: dict[str, Sketch]


@dataclass(frozen=True)
class Records:
    """What was written of a whole store."""

    fingerprint: str
    template: Objects  #: the objects that belong to no shard
    shards: list[ShardRecord] = field(default_factory=list)
    sketches: dict[str, Sketch] = field(default_factory=dict)  #: of the shards that were written just now ...
    sketched: frozenset[Window] = frozenset()  #: ... which are these

    @property
    def objects(self) -> Objects:
        """Every object of the store."""
        return self.template | {key: v for shard in self.shards for key, v in shard.objects.items()}

    @property
    def stored_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(size for size, _ in self.objects.values())

    def valid(self, source: str) -> int:
        """The pixels of a source with data."""
        return sum(shard.valid[source] for shard in self.shards)

    def with_samples(self, url: str, samples: NDArray[np.int32]) -> Records:
        """These records of the store at a URL once the counts of samples are written into it."""
        recorder = storage.Recorder.at(url)
        write_samples(recorder, samples)
        return replace(self, template=self.template | recorder.written)

    def write(self, url: str) -> None:
        """Write the records to a URL."""
        shards = [shard.to_json() for shard in sorted(self.shards, key=lambda s: s.window)]
        storage.write_json(url, {"fingerprint": self.fingerprint, "template": self.template, "shards": shards})

    @classmethod
    def read(cls, url: str) -> Records:
        """The records at a URL.

        Raises:
            FileNotFoundError: there are none.
            InputError: they are damaged.
        """
        try:
            value = storage.read_json(url)
            template = {key: (int(size), str(digest)) for key, (size, digest) in value["template"].items()}
            return cls(value["fingerprint"], template, [ShardRecord.from_json(s) for s in value["shards"]])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{url}: is damaged ({error!r}); run `mibf prepare` again.") from error


@dataclass(frozen=True)
class _Target:
    """Where a scene is written to."""

    scene: OpenScene
    url: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def record(self, window: Window) -> str:
        return storage.join(_records_of(self.url), f"{window.y}_{window.x}.json")


def _records_of(url: str) -> str:
    """The folder of the records of a store in work."""
    return f"{url.rstrip('/')}.shards"


def fill(
    engine: Engine, scene: OpenScene, url: str, *, fingerprint: str, each: Callable[[int], None] = lambda _: None
) -> Records:
    """Write a scene's store, or what is missing of it: `fingerprint` tells whether what lies there is of the same making.

    `each` is called with the number of shards that are done.

    Raises:
        InputError: a file cannot be read. What is done stays, and the same call goes on from there.
    """
    target = _Target(scene, url)
    records, template = _resumed(target, fingerprint)
    if template is None:
        discard(url)
        recorder = storage.Recorder.at(url)
        lay_down(recorder, scene.template, fingerprint=fingerprint)
        template = recorder.written
        storage.write_json(storage.join(_records_of(url), "template.json"), template)
    each(len(records))

    done = {record.window for record in records}
    missing = [window for window in scene.shards if window not in done]
    sketches = sketches_of(scene)

    def take(filled: Filled) -> None:
        records.append(filled.record)
        merge(sketches, filled.sketches)
        each(1)

    engine.each(fill_shard, target, missing, take)
    return Records(fingerprint, template, records, sketches, frozenset(missing))


def finished(url: str, records: str, *, fingerprint: str) -> Records | None:
    """The records of a store that is in its place and of this making; None where there is no such store."""
    try:
        attributes = storage.read_json(storage.join(url, "zarr.json"))["attributes"]
        found = Records.read(records)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, InputError):
        return None
    return found if attributes.get("mibf:fingerprint") == found.fingerprint == fingerprint else None


def discard(url: str) -> None:
    """Remove a store in work with its records."""
    storage.remove(_records_of(url))
    storage.remove(url)


def _resumed(target: _Target, fingerprint: str) -> tuple[list[ShardRecord], Objects | None]:
    """The records that an interrupted filling left, and the template's objects; None where it left nothing."""
    try:
        attributes = storage.read_json(storage.join(target.url, "zarr.json"))["attributes"]
        if attributes["mibf:fingerprint"] != fingerprint or attributes["mibf:shard"] != target.scene.template.shard:
            return [], None
        described = storage.read_json(storage.join(_records_of(target.url), "template.json"))
        template = {key: (int(size), str(digest)) for key, (size, digest) in described.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # nothing, or nothing that is whole
        return [], None
    found = []
    there = set(storage.names(_records_of(target.url)))
    sizes = storage.sizes(target.url)
    if any(sizes.get(key) != size for key, (size, _) in template.items() if not key.startswith("samples/")):
        return [], None
    for window in target.scene.shards:
        url = target.record(window)
        if url.rsplit("/", 1)[-1] in there:
            try:
                record = ShardRecord.from_json(storage.read_json(url))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # cut short: the shard is written again
            if all(sizes.get(key) == size for key, (size, _) in record.objects.items()):
                found.append(record)
    return found, template


def sketches_of(scene: OpenScene) -> dict[str, Sketch]:
    """The counts of a scene's sources before any value is counted."""
    return {s.declared.name: Sketch(s.bands, s.dtype) for s in scene.sources}


def fill_shard(target: _Target, window: Window) -> Filled:
    """Write one shard of a scene's store and its record. Doing it twice leaves the same bytes."""
    started = time.monotonic()
    arrays, valid = shard_arrays(target.scene, window)
    between = time.monotonic()
    objects = _writer(target.url, target.token).write(window, arrays)
    record = ShardRecord(window, objects, valid, round(between - started, 3), round(time.monotonic() - between, 3))
    storage.write_json(target.record(window), record.to_json())
    return Filled(record, _sketched(target.scene, arrays))


def _sketched(scene: OpenScene, arrays: dict[str, NDArray[Any]]) -> dict[str, Sketch]:
    """Count a shard's values at its training samples, while they are at hand."""
    sources = scene.template.sources
    valid = {source.name: arrays[f"valid/{source.name}"].view(bool) for source in sources}
    trained = arrays["split"] == CODES["train"]
    sketches = sketches_of(scene)
    if trained.any():
        for source in sources:
            sketches[source.name].add_at(arrays[f"sources/{source.name}"], valid[source.name], trained)
    return sketches


@lru_cache(maxsize=2)
def _writer(url: str, token: str) -> ShardWriter:
    """The one writer of this process for a filling: it opens the store's arrays once."""
    del token  # tells a filling from another at the same URL
    return ShardWriter(storage.Recorder.at(url))


def shard_arrays(scene: OpenScene, window: Window) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """What a window of every array of a scene's store holds, by the array's path; and the valid pixels of each source.

    Raises:
        InputError: a file cannot be read.
    """
    arrays: dict[str, NDArray[Any]] = {}
    valid, there = {}, {}
    for source, stored in zip(scene.sources, scene.template.sources, strict=True):
        name = source.declared.name
        arrays[f"sources/{name}"], own = source.read(window)
        arrays[f"valid/{name}"] = own.view(np.uint8)
        valid[name] = int(own.sum())
        there[name] = present(stored, own)
    labels = scene.labels.read(window)
    # A sample has a label, and data as the sources' rules want it.
    may_be = usable(scene.template.sources, there)
    arrays["labels"] = labels
    arrays["split"] = scene.split.codes(window, labels) * (may_be & (labels != UNLABELLED))
    return arrays, valid


def broken(engine: Engine, url: str, records: Records, *, each: Callable[[int], None] = lambda _: None) -> list[str]:
    """What of a store is not as its records say: one line an object that is missing, cut short or changed."""
    found: list[str] = []

    def take(lines: Sequence[str]) -> None:
        found.extend(lines)
        each(1)

    engine.each(_check_shard, (url, records.objects), _groups(records), take)
    return sorted(found)


def _groups(records: Records) -> list[tuple[str, list[str]]]:
    """The objects to check together, with what they are of."""
    groups = [("", list(records.template))]
    for shard in records.shards:
        w = shard.window
        groups.append((f" (rows {w.y} to {w.y + w.height - 1}, columns {w.x} to {w.x + w.width - 1})", list(shard.objects)))
    return groups


def _check_shard(shared: tuple[str, Objects], group: tuple[str, list[str]]) -> list[str]:
    url, objects = shared
    where, keys = group
    lines = []
    for key in keys:
        size, digest = objects[key]
        try:
            found, its_digest = storage.sha256(storage.join(url, key))
        except FileNotFoundError:
            lines.append(f"{key}{where}: is missing")
            continue
        except OSError as error:
            lines.append(f"{key}{where}: cannot be read ({error})")
            continue
        if found != size:
            lines.append(f"{key}{where}: has {found:,} bytes instead of {size:,}")
        elif its_digest != digest:
            lines.append(f"{key}{where}: has another checksum than when it was written")
    return lines
