"""runs: every run of every workspace below a URL, with its state; and reruns of all that have something due.

A workspace goes by its folders, so that nothing below it is listed but its runs: neither its stores nor its maps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.config import Config, load
from jobs.exits import exit_status
from jobs.logs import about
from jobs.map import Request
from jobs.progress import counted, say
from jobs.reruns import rerun
from jobs.scene_maps import told_causes
from jobs.stages import StageName, fingerprint, read_manifest
from jobs.status import SceneStatus, status
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline import storage
from pipeline.lease import apparent_holder

#: Folders below the URL that are looked into for workspaces, one below the other.
DEPTH = 4
#: Runs that are looked at at a time: they mostly wait for storage.
AT_A_TIME = 16
#: The stages, in order, of which the last finished one is told.
_STAGES: tuple[StageName, ...] = ("prepare", "train", "evaluate", "map")

#: What holds of a run: its map is as it would be made now; tiles are due; tiles failed; its map was never begun;
#: it cannot be told.
State = Literal["current", "due", "failed", "unmapped", "unreadable"]


@dataclass(frozen=True)
class RunState:
    """A run and what holds of it."""

    workspace: str
    run: str
    state: State
    name: str = ""
    finished: dict[StageName, str] = field(default_factory=dict)  #: when each of its finished stages was, in UTC
    holder: str | None = None  #: who seems to be at work in its workspace
    scenes: list[SceneStatus] = field(default_factory=list)
    cause: str = ""  #: why it cannot be told

    @property
    def tiles(self) -> Counter[str]:
        """The number of tiles by state, of all scenes."""
        found: Counter[str] = Counter()
        for scene in self.scenes:
            found.update({state: count for state, count in scene.tiles.items() if count})
        return found

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        scenes = [scene.to_json() for scene in self.scenes]
        return vars(self) | {"workspace": storage.shown(self.workspace), "scenes": scenes, "tiles": dict(self.tiles)}


def find_runs(url: str) -> list[tuple[str, str]]:
    """Every run below a URL: its workspace and its name, in order.

    Raises:
        InputError: the URL cannot be reached, or there is no folder.
    """
    root = storage.absolute(url.rstrip("/") or "/")
    with storage.reached(root):
        if not storage.exists(root):
            raise InputError(
                f"{storage.shown(root)}: no such folder; give the URL of a workspace, or of a folder above some."
            )
        found: list[tuple[str, str]] = []
        level = [root]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for _ in range(DEPTH + 1):
                listed = list(pool.map(storage.folders, level))
                below = []
                for folder, names in zip(level, listed, strict=True):
                    if "runs" in names and "stores" in names:
                        found += [(folder, run) for run in storage.folders(storage.join(folder, "runs"))]
                    elif "stores" not in names:
                        below += [storage.join(folder, name) for name in names if not name.endswith(".zarr")]
                level = below
    return sorted(found)


def runs(url: str) -> list[RunState]:
    """Every run below a URL with its state. Writes nothing.

    Raises:
        InputError: as for `find_runs`.
    """
    found = find_runs(url)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(_state, found))


def _state(place: tuple[str, str]) -> RunState:
    workspace = Workspace(*place)
    try:
        holder = apparent_holder(workspace.url)
        manifests = {stage: read_manifest(workspace, stage) for stage in _STAGES}
        finished = {stage: manifest.finished for stage, manifest in manifests.items() if manifest is not None}
        if not storage.exists(workspace.map_configuration):
            return RunState(workspace.url, workspace.run, "unmapped", finished=finished, holder=holder)
        config = _config(workspace)
        scenes = status(config)
        mapped = manifests["map"]
        current = mapped is not None and mapped.fingerprint == fingerprint(config, "map")
    except Exception as error:  # whatever is wrong with one run, the others are told
        return RunState(workspace.url, workspace.run, "unreadable", cause=_told(error))
    state: State = "current" if current and all(scene.current for scene in scenes) else "due"
    if any(scene.tiles["failed"] for scene in scenes):
        state = "failed"
    return RunState(workspace.url, workspace.run, state, config.name, finished, holder, scenes)


def _config(workspace: Workspace) -> Config:
    """The configuration of a run's map, on the workspace where it is now: it may have been moved or copied as a whole."""
    return load(workspace.map_configuration).model_copy(update={"workspace": workspace.url, "run": workspace.run})


def _told(error: Exception) -> str:
    words = storage.without_queries(str(error))
    return words if exit_status(error) is not None else f"{type(error).__name__}: {words}"


def lines(found: Sequence[RunState]) -> list[str]:
    """Runs for a person, one a line, with the causes of failed tiles below."""
    told = []
    for run in found:
        tiles = ", ".join(f"{count:,} {state}" for state, count in run.tiles.items())
        last = max(run.finished.items(), key=lambda pair: pair[1], default=None)
        parts = [
            f"{run.state:<10} {storage.shown(run.workspace)} {run.run}",
            f"{counted(sum(run.tiles.values()), 'tiles')}: {tiles}" if tiles else "",
            run.cause,
            f"{last[0]} finished {last[1][:19]}Z" if last else "",
            f"at work: {run.holder}" if run.holder else "",
        ]
        told.append("; ".join(part for part in parts if part))
        for scene in run.scenes:
            told += [f"  {line}" for line in told_causes(scene.causes)] if run.state == "failed" else []
    states = Counter(run.state for run in found)
    counts = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
    return [*told, f"{counted(states.total(), 'runs')}{': ' if counts else ''}{counts}"]


@dataclass(frozen=True)
class RunRerun:
    """What the rerun of one run came to."""

    workspace: str
    run: str
    status: int  #: as the exit status of a rerun of it alone
    done: bool  #: whether anything was done
    lines: list[str]
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        return vars(self) | {"workspace": storage.shown(self.workspace)}


@dataclass(frozen=True)
class RerunAll:
    """What a rerun of all runs came to."""

    looked_at: int
    reruns: list[RunRerun]

    @property
    def status(self) -> int:
        """The exit status: the gravest that there was: 1, 3, 2, 4, else 0."""
        found = {rerun_.status for rerun_ in self.reruns}
        return next((status_ for status_ in (1, 3, 2, 4) if status_ in found), 0)

    @property
    def lines(self) -> list[str]:
        """It for a person; nothing where nothing was to do."""
        told = [
            line
            for rerun_ in self.reruns
            for line in [f"{storage.shown(rerun_.workspace)} {rerun_.run}:", *(f"  {text}" for text in rerun_.lines)]
        ]
        if told:
            ended = Counter(rerun_.status for rerun_ in self.reruns)
            words = {0: "done", 1: "broken off", 2: "refused", 3: "with tiles that failed", 4: "held by others"}
            counts = ", ".join(f"{count:,} {words[status_]}" for status_, count in sorted(ended.items()))
            told.append(f"{counted(self.looked_at, 'runs')} looked at; {counted(len(self.reruns), 'reruns')}: {counts}")
        return told

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        return {
            "status": self.status,
            "nothing_to_do": not any(r.done for r in self.reruns),
            "runs": self.looked_at,
            "reruns": [rerun_.to_json() for rerun_ in self.reruns],
        }


def rerun_all(url: str, request: Request) -> RerunAll:
    """Rerun every run below a URL that has something due, one after the other; what becomes of one keeps no other back.

    Raises:
        InputError: as for `find_runs`.
    """
    found = runs(url)
    states = {(run.workspace, run.run): run for run in found}
    reruns_ = []
    for (workspace, run), state in states.items():
        if state.state == "unreadable":
            reruns_.append(RunRerun(workspace, run, 2, False, [state.cause], {}))
        elif state.state in ("due", "failed"):
            with about(workspace=storage.shown(workspace), run=run):
                reruns_.append(_rerun(Workspace(workspace, run), request))
    return RerunAll(len(found), reruns_)


def _rerun(workspace: Workspace, request: Request) -> RunRerun:
    say(f"== rerun {storage.shown(workspace.url)} {workspace.run}")

    try:
        found = rerun(_config(workspace), request)
    except Exception as error:  # whatever it is, a bug too: told, and the others are gone on with
        ended = exit_status(error)
        return RunRerun(workspace.url, workspace.run, ended or 1, False, _told(error).splitlines(), {})
    lines_ = found.lines if found.failure is None else str(found.failure).splitlines()
    return RunRerun(workspace.url, workspace.run, 0 if found.failure is None else 3, found.done, lines_, found.to_json())
