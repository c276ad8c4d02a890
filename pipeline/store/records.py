"""Records of what was written to a store: the objects of each shard with their checksums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.io import storage, zarr_store
from pipeline.store.quantiles import QuantileSketch
from pipeline.store.scene_quantiles import Quantiles, write_quantiles, write_values
from pipeline.store.shard_writer import write_samples

#: Size and SHA-256 of objects, by their key in a store.
Objects = dict[str, tuple[int, str]]


@dataclass(frozen=True)
class ShardRecord:
    """What was written for one shard."""

    window: Window
    objects: Objects
    valid: dict[str, int]  #: pixels with data, by source
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    #: for every period of each source of several dates, the number of pixels with 1, 2, ... clear dates
    observations: dict[str, list[list[int]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Convert the record to JSON values, without observations if there are none."""
        values = vars(self) | {"window": vars(self.window)}
        return values if self.observations else {key: v for key, v in values.items() if key != "observations"}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardRecord:
        """Parse a record that `to_json` wrote."""
        objects = {key: (int(size), str(digest)) for key, (size, digest) in value["objects"].items()}
        return cls(**{**value, "window": Window(**value["window"]), "objects": objects})


@dataclass(frozen=True)
class StoreRecords:
    """What was written for an entire store."""

    fingerprint: str
    template: Objects  #: objects that belong to no shard
    shards: list[ShardRecord] = field(default_factory=list)
    sketches: dict[str, QuantileSketch] = field(default_factory=dict)  #: of the newly written shards ...
    sketched: frozenset[Window] = frozenset()  #: ... which are these

    @property
    def objects(self) -> Objects:
        """Every object of the store."""
        return self.template | {key: v for shard in self.shards for key, v in shard.objects.items()}

    @property
    def stored_bytes(self) -> int:
        """Total bytes of all objects."""
        return sum(size for size, _ in self.objects.values())

    def valid(self, source: str) -> int:
        """Number of pixels of a source with data."""
        return sum(shard.valid[source] for shard in self.shards)

    def observations(self, source: str, pixels: int) -> list[tuple[int, float]]:
        """The median number of clear dates of a source's pixels, and the share of pixels without any, of each period.

        Args:
            source: of several dates.
            pixels: number of pixels of the source that can have data.
        """
        found = []
        for planes in zip(*(shard.observations[source] for shard in self.shards), strict=True):
            counts = np.zeros(1 + max(map(len, planes)), np.int64)
            for plane in planes:
                counts[1 : 1 + len(plane)] += np.array(plane, np.int64)
            counts[0] = pixels - counts.sum()
            median = int(np.searchsorted(counts.cumsum(), (pixels + 1) // 2))
            found.append((median, float(counts[0] / pixels)))
        return found

    def with_samples(self, url: str, samples: NDArray[np.int32]) -> StoreRecords:
        """Write the sample counts into the store at a URL, and return the records that include them."""
        recorder = zarr_store.ChecksumStore.at(url)
        write_samples(recorder, samples)
        return replace(self, template=self.template | recorder.written)

    def with_quantiles(self, url: str, quantiles: Quantiles) -> StoreRecords:
        """Write a scene's quantiles into the store at a URL, and return the records that include them."""
        recorder = zarr_store.ChecksumStore.at(url)
        write_quantiles(recorder, quantiles)
        return replace(self, template=self.template | recorder.written)

    def with_values(self, url: str, spread: Mapping[str, QuantileSketch]) -> StoreRecords:
        """Write quantiles of a scene's values into the store at a URL, and return the records that include them."""
        recorder = zarr_store.ChecksumStore.at(url)
        write_values(recorder, spread)
        return replace(self, template=self.template | recorder.written)

    def write(self, url: str) -> None:
        """Write the records to a URL."""
        shards = [shard.to_json() for shard in sorted(self.shards, key=lambda s: s.window)]
        storage.write_json(url, {"fingerprint": self.fingerprint, "template": self.template, "shards": shards})

    @classmethod
    def read(cls, url: str) -> StoreRecords:
        """Read the records at a URL.

        Raises:
            FileNotFoundError: there are no records.
            InputError: they are damaged.
        """
        try:
            value = storage.read_json(url)
            template = {key: (int(size), str(digest)) for key, (size, digest) in value["template"].items()}
            return cls(value["fingerprint"], template, [ShardRecord.from_json(s) for s in value["shards"]])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{url}: is damaged ({error!r}); run `mibf prepare` again.") from error


def records_folder(url: str) -> str:
    """The folder of the records of a store in progress."""
    return f"{url.rstrip('/')}.shards"
