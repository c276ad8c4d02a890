"""Manifests: the records of finished stages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jobs.config.config import Config
from jobs.workflow.workspace import Workspace
from mibf import __version__
from mibf.errors import InputError
from pipeline.io import checksums, storage

StageName = Literal["prepare", "train", "evaluate", "baseline", "map", "report"]
#: The stages whose results each stage reads.
DEPENDENCIES: dict[StageName, tuple[StageName, ...]] = {
    "prepare": (),
    "train": ("prepare",),
    "evaluate": ("prepare", "train"),
    "baseline": ("prepare", "train"),
    "map": ("prepare", "train"),
    "report": ("prepare", "train", "evaluate", "baseline", "map"),
}
#: Stages whose results later ones use where they exist, but do not need.
OPTIONAL: tuple[StageName, ...] = ("baseline",)


@dataclass(frozen=True)
class StageResult:
    """Result of a stage: metrics for machines, summary lines for people, and the paths of its outputs."""

    figures: dict[str, Any]
    lines: list[str]
    outputs: list[str]


@dataclass(frozen=True)
class Manifest:
    """Record of a finished stage."""

    stage: StageName
    fingerprint: str
    finished: str  #: time, in UTC
    seconds: float
    peak_memory_bytes: int
    version: str = __version__
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    workspace: str = ""  #: its URL when the stage finished
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)  #: of mibf and the libraries that computed the result
    algorithm_version: int | None = None  #: None in manifests of versions that hashed their source code instead

    @property
    def identity(self) -> str:
        """Hash unique to this result, even among results with the same fingerprint made at other times."""
        return checksums.digest([self.stage, self.fingerprint, self.finished])


def dependencies(config: Config, stage: StageName) -> tuple[StageName, ...]:
    """Return the stages whose results a stage reads.

    A map with an external model needs no training, and a report has no baselines if they are switched off.
    """
    if stage == "map" and config.map.model is not None:
        return ("prepare",)
    off = () if config.baselines.enabled else ("baseline",)
    return tuple(needed for needed in DEPENDENCIES[stage] if needed not in off)


def check_dependencies(config: Config, stage: StageName) -> None:
    """Check that the stages whose results a stage needs are finished.

    Raises:
        InputError: one of them is not.
    """
    workspace = Workspace.of(config)
    for needed in dependencies(config, stage):
        if needed in OPTIONAL or read_manifest(workspace, needed) is not None:
            continue
        if needed == "train" and not config.trainable:
            raise InputError(
                f"{workspace.url}: no model was trained here, and no scene has `labels` to train one on; set map.model to "
                "an external model and run `mibf map`, which also writes quicklook.png."
            )
        of = "" if needed == "prepare" else f" for run {config.run!r}"
        raise InputError(f"{workspace.url}: `{needed}` is not finished{of}; run `mibf {needed}` or `mibf run` first.")


def read_manifest(workspace: Workspace, stage: StageName) -> Manifest | None:
    """Read a stage's manifest; None if it never finished. Output paths are adjusted if the workspace was moved.

    Raises:
        InputError: the workspace cannot be reached.
    """
    url = workspace.manifest(stage)
    with storage.as_input_errors(url):
        try:
            found = Manifest(**storage.read_json(url))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, TypeError):
            return None
    if not found.workspace:  # written by a version without this field
        return found
    before = found.workspace.rstrip("/") + "/"
    moved = [
        storage.join(workspace.url, output.removeprefix(before)) if output.startswith(before) else output
        for output in found.outputs
    ]
    return replace(found, outputs=moved, workspace=workspace.url)


def outputs_exist(manifest: Manifest) -> bool:
    """Whether all outputs of a stage still exist."""
    return all(storage.exists(output) for output in manifest.outputs)


def legacy_stages(workspace: Workspace) -> list[StageName]:
    """Return the finished stages whose manifests have no algorithm version, which none of today's fingerprints can match."""
    manifests = {stage: read_manifest(workspace, stage) for stage in DEPENDENCIES}
    return [stage for stage, manifest in manifests.items() if manifest is not None and manifest.algorithm_version is None]
