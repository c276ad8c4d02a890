"""What `mibf runs` and `mibf rerun --all` print, and the exit status of reruns of many runs."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from jobs.fleet.runs import RerunAll, RunRerun, Runs, RunState, find_runs
from jobs.map.status import SceneStatus
from jobs.workflow.manifest import StageName
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.maps.ledger import State


def rerun(status: int, *, done: bool = True) -> RunRerun:
    return RunRerun("https://me:secret@host/valley", "main", status, done, ["3 tiles mapped"] if done else [], {})


def failed_scene() -> SceneStatus:
    counts: dict[State, int] = {"pending": 0, "done": 8, "failed": 1, "stale": 0}
    return SceneStatus("valley", "/maps/valley", None, False, counts, 9, [("no space left", ["valley/y0_x0"])])


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [([], 0), ([0, 0], 0), ([0, 4], 4), ([4, 2], 2), ([2, 3, 4], 3), ([3, 1, 2], 1)],
)
def test_exit_status_is_the_most_severe_one(statuses: list[int], expected: int) -> None:
    assert RerunAll(9, [rerun(status) for status in statuses]).status == expected


def test_reruns_are_printed_by_run_and_counted_without_credentials() -> None:
    lines = RerunAll(5, [rerun(0), rerun(3)]).lines()
    assert lines == [
        "https://host/valley main:",
        "  3 tiles mapped",
        "https://host/valley main:",
        "  3 tiles mapped",
        "5 runs checked; 2 reruns: 1 done, 1 with failed tiles",
    ]


def test_nothing_to_rerun_prints_nothing() -> None:
    found = RerunAll(5, [])
    assert found.lines() == []
    assert found.to_json() == {"status": 0, "nothing_to_do": True, "runs": 5, "reruns": []}
    assert RerunAll(5, [rerun(2, done=False)]).to_json()["nothing_to_do"]


def test_runs_are_listed_with_tiles_last_stage_holder_and_causes() -> None:
    finished: dict[StageName, str] = {"prepare": "2026-01-01T00:00:00+00:00", "train": "2026-01-02T00:00:00+00:00"}
    failed = RunState("s3://bucket/a", "main", "failed", "a", finished, "node-1", [failed_scene()])
    unreadable = RunState("s3://key:secret@bucket/b", "main", "unreadable", cause="ValueError: not YAML")
    assert Runs([failed, unreadable]).lines() == [
        "failed     s3://bucket/a main; 9 tiles: 8 done, 1 failed; train finished 2026-01-02T00:00:00Z; in use by node-1",
        "    valley/y0_x0: no space left",
        "unreadable s3://bucket/b main; ValueError: not YAML",
        "2 runs: 1 failed, 1 unreadable",
    ]
    assert "secret" not in str(Runs([unreadable]).to_json())
    assert Runs([]).lines() == ["0 runs"]


@pytest.mark.parametrize("unreadable", ["lost+found", "areas/west/runs"])
def test_folder_that_cannot_be_listed_is_reported_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unreadable: str
) -> None:
    for workspace in ("areas/east", "areas/west"):
        for folder in ("stores", "runs/main"):
            (tmp_path / workspace / folder).mkdir(parents=True)
    (tmp_path / unreadable).mkdir(exist_ok=True)
    listed = storage.folders

    def folders(url: str) -> list[str]:  # tests may run as root, whom modes do not stop
        if url == str(tmp_path / unreadable):
            raise PermissionError(errno.EACCES, "Permission denied", url)
        return listed(url)

    monkeypatch.setattr(storage, "folders", folders)
    found = {Path(workspace).name for workspace, _ in find_runs(str(tmp_path))}
    assert found == ({"east", "west"} if unreadable == "lost+found" else {"east"})
    printed = " ".join(capsys.readouterr().err.split())
    assert f"warning: skipped folders that cannot be listed: {tmp_path / unreadable} (Permission denied)" in printed


def test_outage_of_an_object_store_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def folders(url: str) -> list[str]:
        if url.endswith("east"):
            raise TimeoutError("timed out")
        return ["east"]

    monkeypatch.setattr(storage, "exists", lambda url: True)
    monkeypatch.setattr(storage, "folders", folders)
    with pytest.raises(InputError, match="cannot be reached"):
        find_runs("s3://bucket/areas")


def test_unlistable_url_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folders(url: str) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", url)

    monkeypatch.setattr(storage, "folders", folders)
    with pytest.raises(InputError, match="access denied"):
        find_runs(str(tmp_path))
