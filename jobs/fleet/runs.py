"""`mibf runs`: list every run of every workspace below a URL with its state, and rerun all that have tiles to map.

A workspace is recognised by its folders; only its runs are listed, not the contents of its stores and maps.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.fleet.parallel import run_parallel
from jobs.map.attempt import Workers
from jobs.map.request import TileRequest
from jobs.map.rerun import rerun
from jobs.map.status import SceneStatus, status
from jobs.map.summary import format_causes
from jobs.runtime.logs import about
from jobs.runtime.progress import info, pluralize
from jobs.workflow.errors import exit_status
from jobs.workflow.fingerprint import fingerprint
from jobs.workflow.manifest import StageName, read_manifest
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.io.lease import apparent_holder

#: Levels of folders below the URL that are searched for workspaces.
DEPTH = 4
#: Maximum number of skipped folders that are named.
NAMED = 5
#: Number of runs that are read in parallel; this is mostly waiting for storage.
PARALLEL_READS = 16
#: The stages whose completion is reported, in order.
_STAGES: tuple[StageName, ...] = ("prepare", "train", "evaluate", "map")
#: The state of a run: its map is up to date; there are tiles to map; tiles failed; its map was never started; the run
#: cannot be read.
State = Literal["current", "due", "failed", "unmapped", "unreadable"]


@dataclass(frozen=True)
class RunState:
    """A run and its state."""

    workspace: str
    run: str
    state: State
    name: str = ""
    finished: dict[StageName, str] = field(default_factory=dict)  #: completion time of each finished stage, in UTC
    holder: str | None = None  #: apparent holder of the workspace lease
    scenes: list[SceneStatus] = field(default_factory=list)
    cause: str = ""  #: why the run cannot be read

    @property
    def tiles(self) -> Counter[str]:
        """The number of tiles by state over all scenes."""
        found: Counter[str] = Counter()
        for scene in self.scenes:
            found.update({state: count for state, count in scene.tiles.items() if count})
        return found

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        scenes = [scene.to_json() for scene in self.scenes]
        return vars(self) | {"workspace": storage.redact_url(self.workspace), "scenes": scenes, "tiles": dict(self.tiles)}


@dataclass(frozen=True)
class Runs:
    """All runs below a URL."""

    runs: list[RunState]

    def lines(self) -> list[str]:
        """Format the runs for a person, one per line, with the causes of failed tiles below."""
        lines = []
        for run in self.runs:
            tiles = ", ".join(f"{count:,} {state}" for state, count in run.tiles.items())
            last = max(run.finished.items(), key=lambda pair: pair[1], default=None)
            parts = [
                f"{run.state:<10} {storage.redact_url(run.workspace)} {run.run}",
                f"{pluralize(sum(run.tiles.values()), 'tiles')}: {tiles}" if tiles else "",
                run.cause,
                f"{last[0]} finished {last[1][:19]}Z" if last else "",
                f"in use by {run.holder}" if run.holder else "",
            ]
            lines.append("; ".join(part for part in parts if part))
            for scene in run.scenes:
                lines += [f"  {line}" for line in format_causes(scene.causes)] if run.state == "failed" else []
        states = Counter(run.state for run in self.runs)
        counts = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
        return [*lines, f"{pluralize(states.total(), 'runs')}{': ' if counts else ''}{counts}"]

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to JSON values."""
        return [run.to_json() for run in self.runs]


def find_runs(url: str) -> list[tuple[str, str]]:
    """The workspace and name of every run below a URL, sorted. Folders that cannot be listed are reported and skipped.

    Raises:
        InputError: the URL cannot be reached or listed, or the folder does not exist.
    """
    root = storage.absolute(url.rstrip("/") or "/")
    with storage.as_input_errors(root):
        if not storage.exists(root):
            raise InputError(
                f"{storage.redact_url(root)}: folder not found; give the URL of a workspace, or of a folder above "
                "workspaces."
            )
        found: list[tuple[str, str]] = []
        skipped: list[str] = []
        level = [root]

        def listed_folders(folder: str) -> list[str]:
            try:
                return storage.folders(folder)
            except OSError as error:  # `lost+found`, another user's folder, a network disk that is gone
                if folder == root or not (isinstance(error, PermissionError) or storage.is_local(folder)):
                    raise
                skipped.append(f"{storage.redact_url(folder)} ({error.strerror or type(error).__name__})")
                return []

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            for _ in range(DEPTH + 1):
                listed = list(pool.map(listed_folders, level))
                below = []
                for folder, names in zip(level, listed, strict=True):
                    if "runs" in names and "stores" in names:
                        found += [(folder, run) for run in listed_folders(storage.join(folder, "runs"))]
                    elif "stores" not in names:
                        below += [storage.join(folder, name) for name in names if not name.endswith(".zarr")]
                level = below
    if skipped:
        more = f" and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
        info(f"warning: skipped folders that cannot be listed: {', '.join(sorted(skipped)[:NAMED])}{more}")
    return sorted(found)


def runs(url: str) -> Runs:
    """Every run below a URL with its state. Writes nothing.

    Raises:
        InputError: see `find_runs`.
    """
    found = find_runs(url)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return Runs(list(pool.map(_state, found)))


def _state(workspace_and_run: tuple[str, str]) -> RunState:
    workspace = Workspace(*workspace_and_run)
    try:
        holder = apparent_holder(workspace.url)
        manifests = {stage: read_manifest(workspace, stage) for stage in _STAGES}
        finished = {stage: manifest.finished for stage, manifest in manifests.items() if manifest is not None}
        if not storage.exists(workspace.map_configuration):
            return RunState(workspace.url, workspace.run, "unmapped", finished=finished, holder=holder)
        config = _config(workspace)
        scenes = status(config).scenes
        mapped = manifests["map"]
        current = mapped is not None and mapped.fingerprint == fingerprint(config, "map")
    except Exception as error:  # an error in one run must not hide the others
        return RunState(workspace.url, workspace.run, "unreadable", cause=_describe_error(error))
    state: State = "current" if current and all(scene.current for scene in scenes) else "due"
    if any(scene.tiles["failed"] for scene in scenes):
        state = "failed"
    return RunState(workspace.url, workspace.run, state, config.name, finished, holder, scenes)


def _config(workspace: Workspace) -> Config:
    """The configuration of a run's map with the current workspace URL: the workspace may have been moved or copied."""
    return load(workspace.map_configuration, saved=True).model_copy(
        update={"workspace": workspace.url, "run": workspace.run}
    )


def _describe_error(error: Exception) -> str:
    words = storage.without_queries(str(error))
    return words if exit_status(error) is not None else f"{type(error).__name__}: {words}"


@dataclass(frozen=True)
class RunRerun:
    """The result of rerunning one run."""

    workspace: str
    run: str
    status: int  #: the exit status that `mibf rerun` of this run alone would have
    done: bool  #: whether any work was done
    lines: list[str]
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return vars(self) | {"workspace": storage.redact_url(self.workspace)}


@dataclass(frozen=True)
class RerunAll:
    """The result of rerunning all runs."""

    checked: int
    reruns: list[RunRerun]

    @property
    def status(self) -> int:
        """The exit status: the most severe one, in the order 1, 3, 2, 4, else 0."""
        found = {entry.status for entry in self.reruns}
        return next((code for code in (1, 3, 2, 4) if code in found), 0)

    def lines(self) -> list[str]:
        """Format the result for a person; empty if there was nothing to do."""
        lines = [
            line
            for entry in self.reruns
            for line in [f"{storage.redact_url(entry.workspace)} {entry.run}:", *(f"  {text}" for text in entry.lines)]
        ]
        if lines:
            ended = Counter(entry.status for entry in self.reruns)
            words = {0: "done", 1: "stopped by an error", 2: "refused", 3: "with failed tiles", 4: "in use by others"}
            counts = ", ".join(f"{count:,} {words[code]}" for code, count in sorted(ended.items()))
            lines.append(f"{pluralize(self.checked, 'runs')} checked; {pluralize(len(self.reruns), 'reruns')}: {counts}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "status": self.status,
            "nothing_to_do": not any(r.done for r in self.reruns),
            "runs": self.checked,
            "reruns": [entry.to_json() for entry in self.reruns],
        }


def rerun_all(url: str, request: TileRequest, *, parallel: int | None = None) -> RerunAll:
    """Rerun every run below a URL that has tiles to map; a failure in one does not stop the others.

    Args:
        url: of a workspace, or of a folder above workspaces.
        request: the tiles to map.
        parallel: number of runs at a time, which share their workers; by default one after the other, each with its own.

    Raises:
        InputError: see `find_runs`.
    """
    found = runs(url).runs
    unreadable = [RunRerun(run.workspace, run.run, 2, False, [run.cause], {}) for run in found if run.state == "unreadable"]
    due = [Workspace(run.workspace, run.run) for run in found if run.state in ("due", "failed")]
    if parallel is None or not due:
        results = [_rerun(workspace, request) for workspace in due]
    else:
        from jobs.fleet.shared_workers import SharedWorkers  # imports Ray

        at_a_time = min(parallel, len(due))
        shared = SharedWorkers(at_a_time)
        first = _first_on_workers(run for run in found if run.state in ("due", "failed"))
        if first is not None:
            shared.start(first.map.workers, first.resources)
        calls = [(_prefix(workspace, url), partial(_rerun, workspace, request, workers=shared)) for workspace in due]
        results = run_parallel(calls, parallel=at_a_time)
    results += unreadable
    return RerunAll(len(found), sorted(results, key=lambda entry: (entry.workspace, entry.run)))


def _first_on_workers(due: Iterable[RunState]) -> Config | None:
    """The configuration of the first run that has tiles to map on workers; None if none has."""
    for run in due:
        if run.tiles.total() > run.tiles["done"]:
            with suppress(Exception):  # reported when the run is done
                config = _config(Workspace(run.workspace, run.run))
                if config.map.workers:
                    return config
    return None


def _prefix(workspace: Workspace, url: str) -> str:
    """The prefix of a run's lines: its workspace, below the URL that all are below, and its name."""
    root = storage.absolute(url.rstrip("/") or "/")
    below = workspace.url.removeprefix(root).strip("/") or posixpath.basename(workspace.url)
    return f"[{below} {workspace.run}] "


def _rerun(workspace: Workspace, request: TileRequest, *, workers: Workers | None = None) -> RunRerun:
    with about(workspace=storage.redact_url(workspace.url), run=workspace.run):
        info(f"== rerun {storage.redact_url(workspace.url)} {workspace.run}")
        return _rerun_one(workspace, request, workers)


def _rerun_one(workspace: Workspace, request: TileRequest, workers: Workers | None) -> RunRerun:
    try:
        found = rerun(_config(workspace), request, workers=workers)
    except Exception as error:  # any error, including a bug, is reported, and the other runs continue
        ended = exit_status(error)
        return RunRerun(workspace.url, workspace.run, ended or 1, False, _describe_error(error).splitlines(), {})
    lines = found.lines() if found.failure is None else str(found.failure).splitlines()
    return RunRerun(workspace.url, workspace.run, 0 if found.failure is None else 3, found.done, lines, found.to_json())
