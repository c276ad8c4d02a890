"""verify: stores and maps against what was recorded when they were made.

Here every object of the patch stores against its size and checksum; the maps in `verify_map`. Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobs.config import Config
from jobs.progress import bar
from jobs.stages import read_manifest
from jobs.verify_map import CheckedMap, Sample, check_maps
from jobs.verify_map import lines as map_lines
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline import storage
from pipeline.engine import engine
from pipeline.fill import Records, broken
from pipeline.grid import windows
from pipeline.store import PatchStore

#: Broken things of a map that people are told by name.
NAMED = 50


@dataclass(frozen=True)
class CheckedStore:
    """What verify found of one store."""

    scene: str
    url: str
    objects: int
    bytes: int
    broken: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        return vars(self) | {"whole": not self.broken}


@dataclass(frozen=True)
class Verified:
    """What verify found."""

    stores: list[CheckedStore]
    maps: list[CheckedMap]

    @property
    def remedies(self) -> list[str]:
        """What is to be done about what is broken; empty where nothing is."""
        found = []
        if any(store.broken for store in self.stores):
            found.append("a store is broken; `mibf prepare` writes it anew.")
        if any(checked.broken for checked in self.maps):
            found.append(
                "a map is broken; remove the files of it that are named, and `mibf map` makes them anew. Where only tiles "
                "are named, `mibf map --anew` does."
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        return {"stores": [store.to_json() for store in self.stores], "maps": [found.to_json() for found in self.maps]}


def verify(config: Config, *, sample: int = 0, seed: int = 0) -> Verified:
    """Check the store of every scene, and its map where one is published.

    Of each map `sample` tiles, drawn by `seed`, are computed again.

    Raises:
        InputError: `prepare` was never finished.
    """
    workspace = Workspace.of(config)
    if read_manifest(workspace, "prepare") is None:
        raise InputError(f"{workspace.url}: `prepare` is not finished; run `mibf prepare` or `mibf run` first.")
    stores = [_checked(scene.name, config, workspace) for scene in config.scenes]
    unusable = {store.scene for store in stores if store.broken}
    return Verified(stores, check_maps(config, workspace, sample=Sample(sample, seed), unusable=unusable))


def _checked(scene: str, config: Config, workspace: Workspace) -> CheckedStore:
    url = workspace.store(scene)
    try:
        records = Records.read(workspace.records(scene))
    except (FileNotFoundError, IsADirectoryError):
        if not storage.exists(url):
            raise InputError(f"{url}: scene {scene!r} was never prepared here; run `mibf prepare`.") from None
        return CheckedStore(scene, url, 0, 0, [f"{workspace.records(scene)}: is missing, so that nothing can be checked"])
    objects = records.objects
    found = CheckedStore(scene, url, len(objects), records.stored_bytes)
    if not storage.exists(url):
        found.broken.append(f"{url}: is missing")
        return found
    title = f"{scene}: verify"
    with engine(config.prepare.scheduler) as workers, bar(title, len(records.shards) + 1, unit="shards") as advance:
        found.broken.extend(broken(workers, url, records, each=advance))
    if not found.broken:  # its template can be believed
        store = PatchStore(url)
        missing = set(windows(store.shape, store.shard)) - {shard.window for shard in records.shards}
        found.broken.extend(f"{window}: was never written" for window in sorted(missing))
    return found


def lines(found: Verified) -> list[str]:
    """What was found, for a person."""
    told = []
    for store in found.stores:
        state = "whole" if not store.broken else f"{len(store.broken)} broken"
        told.append(f"{store.scene}: {store.objects:,} objects, {store.bytes / 1e6:,.1f} MB, {state}")
        told += [f"  {line}" for line in store.broken]
    return told + [line for checked in found.maps for line in map_lines(checked, most=NAMED)]
