"""Stages, their fingerprints and manifests: what is current is skipped, what is not is done again.

A stage's manifest is written after its data and holds the fingerprint of all that the result
depends on: what has no manifest does not exist to the next stage.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from jobs.config import Config
from jobs.declared import input_urls
from jobs.logs import about
from jobs.progress import taken_warnings
from jobs.resources import PeakMemory
from jobs.workspace import Workspace
from mibf import __version__
from mibf.bundle import MODEL
from mibf.errors import InputError
from pipeline import bundles, storage
from pipeline.lease import Lease, held

StageName = Literal["prepare", "train", "evaluate", "map", "report"]
#: The stages whose results a stage reads.
NEEDS: dict[StageName, tuple[StageName, ...]] = {
    "prepare": (),
    "train": ("prepare",),
    "evaluate": ("prepare", "train"),
    "map": ("prepare", "train"),
    "report": ("prepare", "train", "evaluate", "map"),
}
#: The modules of `jobs` that a stage's result depends on, where they are not just the one of its name.
DRIVERS: dict[str, tuple[str, ...]] = {
    "prepare": ("prepare", "scenes", "declared"),
    "train": ("train", "loop"),
    "map": ("map", "scene_maps"),
    "evaluate": ("evaluate", "seeds"),
    "report": ("report", "seeds"),
}
#: What of `map` changes no map.
NO_MAP = ("workers", "readers", "attempts", "backoff", "drift", "drift_distance")
#: What of `train` changes no result.
NO_RESULT = ("recipe", "failures", "checkpoint_steps", "log_steps", "mlflow")


class StageError(Exception):
    """A stage could not be finished for a reason that the message tells; exit status 1."""


class TilesFailedError(StageError):
    """A map's work was finished but for some tiles; exit status 3."""


class BrokenError(StageError):
    """A store or a map is not what was written; exit status 3."""


@dataclass(frozen=True)
class Outcome:
    """What a stage did: figures for machines, lines for people, and the paths of what it made."""

    figures: dict[str, Any]
    lines: list[str]
    outputs: list[str]


#: Does a stage: given the configuration, where all lies, the fingerprint of the result, and the hold on the workspace.
Work = Callable[[Config, Workspace, str, Lease], Outcome]


@dataclass(frozen=True)
class Manifest:
    """The record of a finished stage."""

    stage: StageName
    fingerprint: str
    finished: str  #: when, in UTC
    seconds: float
    peak_memory_bytes: int
    version: str = __version__
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    workspace: str = ""  #: where it was when the stage was done
    warnings: list[str] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """Tells this result from every other, those of the same fingerprint done at another time included."""
        return storage.digest([self.stage, self.fingerprint, self.finished])


def needs(config: Config, stage: StageName) -> tuple[StageName, ...]:
    """The stages whose results a stage reads: a map by a model from elsewhere needs no training here."""
    if stage == "map" and config.map.model is not None:
        return ("prepare",)
    return NEEDS[stage]


def check_needs(config: Config, stage: StageName) -> None:
    """See that the stages whose results a stage reads are finished.

    Raises:
        InputError: one is not.
    """
    workspace = Workspace.of(config)
    for needed in needs(config, stage):
        if read_manifest(workspace, needed) is not None:
            continue
        if needed == "train" and not config.labelled:
            raise InputError(
                f"{workspace.url}: no model was trained here, and no scene has `labels` to train one; `mibf map` maps with "
                "a model from elsewhere (map.model) and draws quicklook.png."
            )
        of = "" if needed == "prepare" else f" for run {config.run!r}"
        raise InputError(f"{workspace.url}: `{needed}` is not finished{of}; run `mibf {needed}` or `mibf run` first.")


def read_manifest(workspace: Workspace, stage: StageName) -> Manifest | None:
    """A stage's manifest, if the stage was ever finished; in a workspace that was moved, with its outputs there."""
    try:
        found = Manifest(**storage.read_json(workspace.manifest(stage)))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, TypeError):
        return None
    if not found.workspace:  # of a version that did not say
        return found
    before = found.workspace.rstrip("/") + "/"
    moved = [
        storage.join(workspace.url, output.removeprefix(before)) if output.startswith(before) else output
        for output in found.outputs
    ]
    return replace(found, outputs=moved, workspace=workspace.url)


def imported(workspace: Workspace) -> str | None:
    """The SHA-256 of the authors' checkpoint that a run's model was read from; None where it was not."""
    manifest = read_manifest(workspace, "train")
    return None if manifest is None else manifest.figures.get("authors", {}).get("sha256")


def fingerprint(config: Config, stage: StageName, *, checkpoint: str | None = None) -> str:
    """The hash of everything that a stage's result depends on: inputs, configuration, code, earlier results.

    Earlier results are those that are there, current or not: when one is done again, whatever was made of the
    one before is stale. A model that was not trained but read from a checkpoint depends on that instead of
    what training is configured by: the one of this SHA-256, or the one that the run's model was read from.

    Raises:
        InputError: an input file is missing.
    """
    values = config.model_dump(mode="json")
    workspace = Workspace.of(config)
    parts: dict[str, Any] = {"stage": stage, "code": code(stage)}
    earlier = [read_manifest(workspace, needed) for needed in needs(config, stage)]
    parts["needs"] = [manifest and manifest.identity for manifest in earlier]
    if stage == "prepare":
        parts["configuration"] = [
            _as_stored(values["scenes"]),
            values["classes"],
            values["split"],
            config.model.patch,
            config.prepare.shard,
        ]
        parts["inputs"] = {url: storage.stamp(url) for url in input_urls(config)}
    elif stage == "train" and (checkpoint := checkpoint or imported(workspace)):
        parts["code"] = code("authors")
        parts["configuration"] = [checkpoint, config.model.patch]
    elif stage == "train":
        branches = [source.branch for source in config.scenes[0].sources.values()]
        wanted = {k: v for k, v in values["train"].items() if k not in NO_RESULT}
        parts["configuration"] = [values["sampling"], values["model"], wanted, branches]
    elif stage == "evaluate":
        parts["configuration"] = values["prediction"]
    elif stage == "map":
        changing = {k: v for k, v in values["map"].items() if k not in NO_MAP}
        parts["configuration"] = [changing, values["prediction"], [scene.datetime for scene in config.scenes]]
        if config.map.model is not None:
            parts["model"] = storage.stamp(bundles.file_of(bundles.folder_of(config.map.model), MODEL))
    elif stage == "report":
        parts["configuration"] = [config.name, config.run]  # one page for all runs: it shows the last one
    return storage.digest(parts)


def _as_stored(scenes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The scenes without what changes no store: what only the network is made by, or only told of the map."""
    for scene in scenes:
        del scene["datetime"]
        for source in scene["sources"].values():
            del source["branch"]
    return scenes


@cache
def code(driver: StageName | Literal["authors"]) -> str:
    """The hash of the source code that a driver runs."""
    digest = hashlib.sha256()
    modules = [p for package in ("mibf", "pipeline") for p in files(package).iterdir() if p.name.endswith(".py")]
    for module in sorted(modules, key=lambda p: p.name):
        digest.update(module.read_bytes())
    for name in DRIVERS.get(driver, (driver,)):
        digest.update(files("jobs").joinpath(f"{name}.py").read_bytes())
    return digest.hexdigest()[:20]


def run_stage(
    config: Config,
    stage: StageName,
    work: Work,
    *,
    keep_current: bool,
    checkpoint: str | None = None,
) -> tuple[Manifest, bool]:
    """Do a stage, or with `keep_current` leave it where its manifest is current; `checkpoint` as for `fingerprint`.

    Returns:
        The manifest, and whether the stage was done just now.

    Raises:
        InputError: an input is missing, an earlier stage was never finished, or the workspace cannot be written.
        LeaseHeldError: another run holds the workspace.
    """
    workspace = Workspace.of(config)
    check_needs(config, stage)
    current = fingerprint(config, stage, checkpoint=checkpoint)
    storage.check_writable(workspace.url)
    subject = {"workspace": storage.shown(workspace.url), "name": config.name, "run": config.run, "stage": stage}
    with about(**subject), held(workspace.url, what=f"mibf {stage} of {config.name}, run {config.run}") as lease:
        manifest = read_manifest(workspace, stage)
        if keep_current and manifest is not None and manifest.fingerprint == current and _is_whole(manifest):
            return manifest, False
        started = time.monotonic()
        taken_warnings()  # those of a stage before are not this one's
        with PeakMemory() as peak:
            outcome = work(config, workspace, current, lease)
        manifest = Manifest(
            stage=stage,
            fingerprint=current,
            finished=datetime.now(UTC).isoformat(),
            workspace=workspace.url,
            seconds=round(time.monotonic() - started, 1),
            peak_memory_bytes=peak.bytes,
            warnings=taken_warnings(),
            **vars(outcome),
        )
        lease.check()
        storage.write_json(workspace.manifest(stage), vars(manifest))
    return manifest, True


def _is_whole(manifest: Manifest) -> bool:
    """Whether everything that a stage made is still there."""
    return all(storage.exists(output) for output in manifest.outputs)


def begin(workspace: Workspace, stage: StageName, lease: Lease) -> None:
    """Take back a stage's manifest before its data changes: from here on the stage is not finished.

    Raises:
        LeaseLostError: the workspace is not held any longer.
    """
    lease.check()
    storage.remove(workspace.manifest(stage))


def stale_needs(config: Config, stage: StageName) -> list[StageName]:
    """The finished earlier stages whose results are not those of the configuration, inputs and code as they are now."""
    workspace = Workspace.of(config)
    return [needed for needed in needs(config, stage) if _is_stale(config, workspace, needed)]


def _is_stale(config: Config, workspace: Workspace, stage: StageName) -> bool:
    manifest = read_manifest(workspace, stage)
    try:
        return manifest is not None and manifest.fingerprint != fingerprint(config, stage)
    except InputError:  # an input is not there any more; what was made of it may still be used
        return True
