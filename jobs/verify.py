"""verify: every object of the patch stores against the sizes and checksums that were recorded when it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobs.config import Config
from jobs.progress import bar
from jobs.stages import read_manifest
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline import storage
from pipeline.engine import engine
from pipeline.fill import Records, broken
from pipeline.grid import windows
from pipeline.store import PatchStore


@dataclass(frozen=True)
class Checked:
    """What verify found of one store."""

    scene: str
    url: str
    objects: int
    bytes: int
    broken: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        return vars(self) | {"whole": not self.broken}


def verify(config: Config) -> list[Checked]:
    """Check the store of every scene.

    Raises:
        InputError: `prepare` was never finished.
    """
    workspace = Workspace.of(config)
    if read_manifest(workspace, "prepare") is None:
        raise InputError(f"{workspace.url}: `prepare` is not finished; run `mibf prepare` or `mibf run` first.")
    return [_checked(scene.name, config, workspace) for scene in config.scenes]


def _checked(scene: str, config: Config, workspace: Workspace) -> Checked:
    url = workspace.store(scene)
    try:
        records = Records.read(workspace.records(scene))
    except (FileNotFoundError, IsADirectoryError):
        if not storage.exists(url):
            raise InputError(f"{url}: scene {scene!r} was never prepared here; run `mibf prepare`.") from None
        return Checked(scene, url, 0, 0, [f"{workspace.records(scene)}: is missing, so that nothing can be checked"])
    objects = records.objects
    found = Checked(scene, url, len(objects), records.stored_bytes)
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


def lines(checked: list[Checked]) -> list[str]:
    """What was found, for a person."""
    told = []
    for store in checked:
        state = "whole" if not store.broken else f"{len(store.broken)} broken"
        told.append(f"{store.scene}: {store.objects:,} objects, {store.bytes / 1e6:,.1f} MB, {state}")
        told += [f"  {line}" for line in store.broken]
    return told
