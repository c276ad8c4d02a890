"""`mibf verify`: check stores and maps against what was recorded when they were written.

This module checks every object of the patch stores against its size and checksum; `verify_map` checks the maps. Nothing is
written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobs.config.config import Config
from jobs.inspection.verify_map import CheckedMap, Sample, check_maps
from jobs.prepare.engine import make_executor
from jobs.runtime.progress import progress_bar
from jobs.workflow.manifest import read_manifest
from jobs.workflow.result import Result
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.grid import windows
from pipeline.io import storage
from pipeline.store.patch_store import PatchStore
from pipeline.store.records import StoreRecords
from pipeline.store.verify import find_corrupt_objects


@dataclass(frozen=True)
class CheckedStore:
    """The result of checking one store."""

    scene: str
    url: str
    objects: int
    bytes: int
    broken: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Format the findings for a person."""
        state = "intact" if not self.broken else f"{len(self.broken)} corrupt"
        head = f"{self.scene}: {self.objects:,} objects, {self.bytes / 1e6:,.1f} MB, {state}"
        return [head, *(f"  {line}" for line in self.broken)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return vars(self) | {"intact": not self.broken}


@dataclass(frozen=True)
class Verified:
    """The result of checking all stores and maps."""

    stores: list[CheckedStore]
    maps: list[CheckedMap]

    @property
    def remedies(self) -> list[str]:
        """What to do about corrupt stores and maps; empty if there are none."""
        found = []
        if any(store.broken for store in self.stores):
            found.append("a store is corrupt; run `mibf prepare` to rewrite it.")
        if any(checked.broken for checked in self.maps):
            found.append(
                "a map is corrupt; delete the listed files and run `mibf map` to rewrite them. If only tiles are listed, "
                "run `mibf map --restart`."
            )
        return found

    def lines(self) -> list[str]:
        """Format the findings for a person: stores, then maps."""
        checked: list[Result] = [*self.stores, *self.maps]
        return [line for found in checked for line in found.lines()]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"stores": [store.to_json() for store in self.stores], "maps": [found.to_json() for found in self.maps]}


def verify(config: Config, *, sample: int = 0, seed: int = 0) -> Verified:
    """Check the store of every scene, and its map if one is published.

    Of each map, `sample` tiles are selected at random by `seed` and recomputed.

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
        records = StoreRecords.read(workspace.records(scene))
    except (FileNotFoundError, IsADirectoryError):
        if not storage.exists(url):
            raise InputError(f"{url}: scene {scene!r} was never prepared here; run `mibf prepare`.") from None
        return CheckedStore(scene, url, 0, 0, [f"{workspace.records(scene)}: is missing, so nothing can be checked"])
    objects = records.objects
    found = CheckedStore(scene, url, len(objects), records.stored_bytes)
    if not storage.exists(url):
        found.broken.append(f"{url}: is missing")
        return found
    title = f"{scene}: verify"
    with (
        make_executor(config.prepare, files=[workspace.records(scene)]) as workers,
        progress_bar(title, len(records.shards) + 1, unit="shards") as advance,
    ):
        found.broken.extend(find_corrupt_objects(workers, url, records, each=advance))
    if not found.broken:  # then its template can be trusted
        store = PatchStore(url)
        missing = set(windows(store.shape, store.shard)) - {shard.window for shard in records.shards}
        found.broken.extend(f"{window}: was never written" for window in sorted(missing))
    return found
