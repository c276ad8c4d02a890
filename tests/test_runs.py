"""`mibf runs` and `mibf rerun --all`: a fleet of scenes at once; what is due is done, and then nothing is."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs import runs as runs_module
from jobs.cli import app
from jobs.map import Request
from jobs.runs import find_runs, rerun_all, runs
from mibf.errors import InputError
from pipeline import storage
from pipeline.lease import held
from tests.mapped import Mapped, Result

pytestmark = pytest.mark.slow

#: How many workspaces of the fleet are how.
FLEET = {"current": 40, "failed": 5, "due": 4, "unmapped": 1}


def mibf(*arguments: str) -> Result:
    found = CliRunner().invoke(app, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Result(found.exit_code, found.stdout, found.stderr)


def fail_at_corner(mapped: Mapped) -> None:
    """Have the four tiles fail that read a damaged shard, and mend it."""
    shard = mapped.shard(1, 1)
    content = shard.read_bytes()
    shard.write_bytes(content[:-40])
    mapped.does("map", "--anew", status=3)
    shard.write_bytes(content)


def age(workspace: Path) -> None:
    """Ask of a map for one product more, so that all its tiles are stale."""
    path = workspace / "runs/main/map.yaml"
    values = yaml.safe_load(path.read_text())
    values["map"]["products"] = [*values["map"]["products"], "entropy"]
    path.write_text(yaml.safe_dump(values))


@pytest.fixture
def fleet(whole: Mapped, trained: Mapped, tmp_path: Path) -> Path:
    """Workspaces of 50 areas below one folder, at two depths."""
    broken = whole.copy(tmp_path / "broken")
    fail_at_corner(broken)
    folder = tmp_path / "fleet"
    for state, count in FLEET.items():
        made = {"failed": broken, "unmapped": trained}.get(state, whole)
        for number in range(count):
            place = folder / ("north" if number % 2 else "south/far") / f"{state}-{number}"
            shutil.copytree(made.folder / "work", place)
            if state == "due":
                age(place)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fleet_is_told_and_what_is_due_is_done_once(fleet: Path) -> None:
    before = contents(fleet)
    told = mibf("runs", str(fleet), "--json").json
    assert Counter(run["state"] for run in told) == FLEET
    assert {run["workspace"].rpartition("/")[2].partition("-")[0]: run["state"] for run in told}.items() <= {
        (state, state) for state in FLEET
    }
    assert contents(fleet) == before, "looking writes nothing"

    first = mibf("rerun", "--all", str(fleet), "--json").json
    assert (first["status"], first["runs"], first["nothing_to_do"]) == (0, 50, False)
    mapped = {Path(rerun["workspace"]).name: rerun["figures"]["tiles_mapped"] for rerun in first["reruns"]}
    assert mapped == {f"failed-{n}": 4 for n in range(5)} | {f"due-{n}": 9 for n in range(4)}
    after = contents(fleet)
    touched = {str(path.relative_to(fleet)) for path in after if after[path] != before.get(path)}
    assert not any("current-" in path or "unmapped-" in path for path in touched)

    second = mibf("rerun", "--all", str(fleet))
    assert (second.status, second.stdout) == (0, ""), "quiet where nothing is to do"
    assert contents(fleet) == after
    assert mibf("rerun", "--all", str(fleet), "--json").json["nothing_to_do"]
    assert Counter(run.state for run in runs(str(fleet))) == {"current": 49, "unmapped": 1}


def test_one_line_a_run_and_the_causes_of_what_failed(whole: Mapped, tmp_path: Path) -> None:
    mapped = whole.copy(tmp_path / "scene")
    fail_at_corner(mapped)
    told = mibf("runs", str(mapped.folder)).stdout.splitlines()
    assert told[0].startswith(f"failed     {mapped.folder / 'work'} main; 9 tiles: ")
    assert "4 failed" in told[0]
    assert "sources/optical/c/0/1/1" in told[1]
    assert told[-1] == "1 run: 1 failed"


def test_what_becomes_of_one_run_keeps_no_other_back(whole: Mapped, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    for name in ("a-unreadable", "b-lasting", "c-due"):
        shutil.copytree(whole.folder / "work", fleet / name)
    (fleet / "a-unreadable/runs/main/map.yaml").write_text("workspace: [")
    shard = fleet / "b-lasting/stores/small.zarr/sources/optical/c/0/1/1"
    age(fleet / "b-lasting")
    shard.write_bytes(shard.read_bytes()[:-40])
    age(fleet / "c-due")
    done = mibf("rerun", "--all", str(fleet), "--json")
    assert done.status == 3
    ended = {Path(rerun["workspace"]).name: rerun["status"] for rerun in done.json["reruns"]}
    assert ended == {"a-unreadable": 2, "b-lasting": 3, "c-due": 0}
    assert {path.name for path in (fleet / "c-due/maps/small/main").glob("*.tif")} >= {"class.tif", "entropy.tif"}


def test_a_workspace_that_another_run_holds_is_left_to_it(whole: Mapped, tmp_path: Path) -> None:
    mapped = whole.copy(tmp_path / "scene")
    age(mapped.folder / "work")
    before = mapped.published()
    with held(str(mapped.folder / "work"), what="mibf map of elsewhere"):
        (run,) = runs(str(mapped.folder))
        assert (run.state, run.holder is not None and "mibf map of elsewhere" in run.holder) == ("due", True)
        done = mibf("rerun", "--all", str(mapped.folder), "--json")
    assert done.status == 4
    (rerun,) = done.json["reruns"]
    assert (rerun["status"], "another run holds the workspace" in rerun["lines"][0]) == (4, True)
    assert mapped.published() == before
    assert mibf("rerun", "--all", str(mapped.folder)).status == 0


def test_tiles_that_failed_too_often_are_left_alone_and_listed(whole: Mapped, tmp_path: Path) -> None:
    mapped = whole.copy(tmp_path / "scene")
    fail_at_corner(mapped)
    shard = mapped.shard(1, 1)
    shard.write_bytes(shard.read_bytes()[:-40])
    events = len(mapped.events())
    done = mibf("rerun", "--all", str(mapped.folder), "--max-attempts", "1", "--json")
    assert done.status == 3
    assert len(mapped.events()) == events, "none was tried"
    (rerun,) = done.json["reruns"]
    assert rerun["figures"]["scenes"][0]["tiles"]["failed"] == 4
    assert any("left alone" in line for line in rerun["lines"]), rerun["lines"]


def test_a_run_is_rerun_as_it_was_mapped_wherever_its_workspace_is(whole: Mapped, tmp_path: Path) -> None:
    """Its configuration names the place where it was made; that is gone, and the map is not made there again."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(whole.folder / "work", moved)
    (moved / "maps/small/main/class.tif").unlink()
    found = rerun_all(str(moved), Request())
    assert [rerun.status for rerun in found.reruns] == [0]
    assert (moved / "maps/small/main/class.tif").read_bytes() == whole.published()["class.tif"]


def test_stores_and_maps_are_not_listed(whole: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole.folder / "work", tmp_path / "deep/er/work")
    listed: list[str] = []

    def folders(url: str) -> list[str]:
        listed.append(url)
        return storage_folders(url)

    storage_folders = storage.folders
    monkeypatch.setattr(runs_module.storage, "folders", folders)
    assert find_runs(str(tmp_path)) == [(str(tmp_path / "deep/er/work"), "main")]
    below = [url.removeprefix(str(tmp_path)) for url in listed]
    assert sorted(below) == ["", "/deep", "/deep/er", "/deep/er/work", "/deep/er/work/runs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rerun"], "give a CONFIG, or --all URL"),
        (["rerun", "some.yaml", "--all", "there"], "give a CONFIG, or --all URL"),
        (["rerun", "--all", ".", "--set", "map.tile=64"], "are for one run"),
        (["rerun", "--all", "{folder}/none"], "no such folder"),
        (["runs", "{folder}/none"], "no such folder"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    found = mibf(*(part.format(folder=tmp_path) for part in arguments))
    assert found.status == 2
    assert message in found.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_without_runs_has_none(tmp_path: Path) -> None:
    (tmp_path / "some/folders").mkdir(parents=True)
    found = mibf("runs", str(tmp_path))
    assert (found.status, found.stdout) == (0, "0 runs\n")


class _Busy(http.server.BaseHTTPRequestHandler):
    """A bucket that has no time."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("credentials", "why"),
    [
        ({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}, "Service Unavailable"),
        ({"AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none"}, "Unable to locate credentials"),
    ],
    ids=["throttled", "without credentials"],
)
def test_a_bucket_that_throttles_or_does_not_know_us_is_told(credentials: dict[str, str], why: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}", "AWS_EC2_METADATA_DISABLED": "true"}
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", "runs", "s3://bucket/areas"],
            capture_output=True,
            text=True,
            env=plain | endpoint | credentials,
            timeout=200,
            check=False,
        )
        server.shutdown()
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("mibf: s3://bucket/areas: cannot be reached (")
    assert why in done.stderr


def test_a_bucket_that_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> Any:
        raise PermissionError(f"Forbidden: {url}")

    monkeypatch.setattr(storage, "exists", refuse)
    with pytest.raises(InputError, match=r"s3://bucket/areas: access is refused"):
        find_runs("s3://bucket/areas")
