"""Run stages with fingerprints and manifests: skip stages that are current, rerun those that are not.

A stage's manifest is written after its data and holds the fingerprint of everything that the result
depends on. Later stages ignore a result without a manifest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from jobs.config.config import Config
from jobs.runtime.logs import about
from jobs.runtime.memory import PeakMemory
from jobs.runtime.progress import info, take_warnings
from jobs.runtime.version import library_versions, version_changes
from jobs.workflow.fingerprint import ALGORITHM_VERSIONS, fingerprint
from jobs.workflow.manifest import (
    Manifest,
    StageName,
    StageResult,
    check_dependencies,
    dependencies,
    legacy_stages,
    outputs_exist,
    read_manifest,
)
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.io.file_system import check_file_system
from pipeline.io.lease import Lease, acquire
from pipeline.store.build import in_order

#: Function of a stage. Takes the configuration, the workspace, the fingerprint of the result and the workspace lease.
StageFunction = Callable[[Config, Workspace, str, Lease], StageResult]
#: Workspaces that this process has checked for results of an earlier version.
_legacy_checked: set[str] = set()
#: Workspaces and changed versions that were reported in this process.
_upgrades_reported: set[tuple[str, str]] = set()


def run_stage(
    config: Config,
    stage: StageName,
    work: StageFunction,
    *,
    keep_current: bool,
    checkpoint: str | None = None,
) -> tuple[Manifest, bool]:
    """Run a stage; with `keep_current` skip it if its manifest is current. `checkpoint`: see `fingerprint`.

    Returns:
        The manifest, and whether the stage ran in this call.

    Raises:
        InputError: an input is missing, an earlier stage never finished, or the workspace is not writable.
        LeaseHeldError: another run holds the workspace lease.
    """
    workspace = Workspace.of(config)
    check_dependencies(config, stage)
    current = fingerprint(config, stage, checkpoint=checkpoint)
    storage.check_writable(workspace.url)
    check_file_system(workspace.url)
    subject = {"workspace": storage.redact_url(workspace.url), "name": config.name, "run": config.run, "stage": stage}
    with about(**subject), acquire(workspace.url, what=f"mibf {stage} of {config.name}, run {config.run}") as lease:
        manifest = read_manifest(workspace, stage)
        if keep_current and manifest is not None and _is_current(config, manifest, current) and outputs_exist(manifest):
            if stage != "map":  # whose scheduled reruns print nothing if there is nothing to do
                _report_upgrade(workspace, [stage])
            return manifest, False
        _report_legacy(workspace)
        _report_upgrade(workspace, dependencies(config, stage))
        started = time.monotonic()
        take_warnings()  # discard warnings of earlier stages
        with PeakMemory() as peak:
            outcome = work(config, workspace, current, lease)
        manifest = Manifest(
            stage=stage,
            fingerprint=current,
            finished=datetime.now(UTC).isoformat(),
            workspace=workspace.url,
            seconds=round(time.monotonic() - started, 1),
            peak_memory_bytes=peak.bytes,
            warnings=take_warnings(),
            versions=library_versions(),
            algorithm_version=ALGORITHM_VERSIONS[stage],
            **vars(outcome),
        )
        lease.check()
        storage.write_json(workspace.manifest(stage), vars(manifest))
    return manifest, True


def _report_legacy(workspace: Workspace) -> None:
    """Say once that results of an earlier version are made again, and why."""
    if workspace.url in _legacy_checked:
        return
    _legacy_checked.add(workspace.url)
    if legacy := legacy_stages(workspace):
        info(
            f"{workspace.url}: {', '.join(legacy)} finished with an earlier version of mibf, which recorded no algorithm "
            "version; whether they are current is unknown, so each stage that runs now computes its result again"
        )


def _report_upgrade(workspace: Workspace, stages: Sequence[StageName]) -> None:
    """Say once which of the results that are used now were made with other versions of the libraries."""
    for stage in stages:
        manifest = read_manifest(workspace, stage)
        changed = "" if manifest is None else version_changes(manifest.versions, library_versions())
        if changed and (workspace.url, changed) not in _upgrades_reported:
            _upgrades_reported.add((workspace.url, changed))
            info(
                f"{workspace.url}: `{stage}` was made with {changed}; it is used as it is. Values that another version "
                "computes may differ slightly; `stale_on_upgrade: true` makes such results again"
            )


def invalidate(workspace: Workspace, stage: StageName, lease: Lease) -> None:
    """Remove a stage's manifest before its data changes; the stage then counts as unfinished.

    Raises:
        LeaseLostError: the workspace lease was lost.
    """
    lease.check()
    storage.remove(workspace.manifest(stage))


def stale_dependencies(config: Config, stage: StageName) -> list[StageName]:
    """Return the finished earlier stages that are not current with the configuration, inputs and algorithm version."""
    workspace = Workspace.of(config)
    return [needed for needed in dependencies(config, stage) if _is_stale(config, workspace, needed)]


def _is_current(config: Config, manifest: Manifest, current: str) -> bool:
    """Whether a finished stage's result is that of the configuration, whose fingerprint is `current`.

    Of stores, it is also their order of sources, which is that of the network's inputs.
    """
    if manifest.fingerprint != current:
        return False
    if manifest.stage != "prepare":
        return True
    workspace = Workspace.of(config)
    for scene in config.scenes:
        try:
            attributes = storage.read_json(storage.join(workspace.store(scene.name), "zarr.json"))["attributes"]
            if not in_order(attributes, list(scene.sources)):
                return False
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged, which is not found out here
            continue
    return True


def _is_stale(config: Config, workspace: Workspace, stage: StageName) -> bool:
    manifest = read_manifest(workspace, stage)
    try:
        return manifest is not None and not _is_current(config, manifest, fingerprint(config, stage))
    except InputError:  # an input no longer exists; results made from it remain usable
        return True
