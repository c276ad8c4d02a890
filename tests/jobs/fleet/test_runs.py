"""`mibf runs` and `mibf rerun --all` on many workspaces: unfinished runs are completed; a second rerun does nothing."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml

from jobs.fleet import runs as runs_module
from jobs.fleet.runs import find_runs, rerun_all, runs
from jobs.map.request import TileRequest
from mibf.errors import InputError
from pipeline.io import storage
from pipeline.io.lease import acquire
from tests.support.commands import mibf
from tests.support.mapped_scene import Mapped

pytestmark = pytest.mark.slow
#: Number of workspaces in each state.
FLEET = {"current": 44, "failed": 3, "due": 2, "unmapped": 1}


def fail_at_corner(mapped: Mapped) -> None:
    """Make the four tiles that read a damaged shard fail, then restore the shard."""
    shard = mapped.shard(1, 1)
    content = shard.read_bytes()
    shard.write_bytes(content[:-40])
    mapped.does("map", "--restart", status=3)
    shard.write_bytes(content)


def age(workspace: Path) -> None:
    """Add a product to a map's configuration; all its tiles become stale."""
    path = workspace / "runs/main/map.yaml"
    values = yaml.safe_load(path.read_text())
    values["map"]["products"] = ["class", "confidence", "entropy"]
    path.write_text(yaml.safe_dump(values))


@pytest.fixture
def fleet(reference: Mapped, trained: Mapped, tmp_path: Path) -> Path:
    """Workspaces of 50 areas in one folder, at two depths."""
    broken = reference.copy(tmp_path / "broken")
    fail_at_corner(broken)
    folder = tmp_path / "fleet"
    for state, count in FLEET.items():
        made = {"failed": broken, "unmapped": trained}.get(state, reference)
        for number in range(count):
            place = folder / ("north" if number % 2 else "south/far") / f"{state}-{number}"
            shutil.copytree(made.folder / "work", place)
            if state == "due":
                age(place)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rerun_all_completes_every_unfinished_run_once(fleet: Path) -> None:
    before = contents(fleet)
    listed = mibf("runs", str(fleet), "--json").json
    assert Counter(run["state"] for run in listed) == FLEET
    assert {run["workspace"].rpartition("/")[2].partition("-")[0]: run["state"] for run in listed}.items() <= {
        (state, state) for state in FLEET
    }
    assert contents(fleet) == before, "mibf runs writes nothing"

    first = mibf("rerun", "--all", str(fleet), "--json").json
    assert (first["status"], first["runs"], first["nothing_to_do"]) == (0, 50, False)
    mapped = {Path(rerun["workspace"]).name: rerun["figures"]["tiles_mapped"] for rerun in first["reruns"]}
    assert mapped == {f"failed-{n}": 4 for n in range(3)} | {f"due-{n}": 9 for n in range(2)}
    after = contents(fleet)
    touched = {str(path.relative_to(fleet)) for path in after if after[path] != before.get(path)}
    assert not any("current-" in path or "unmapped-" in path for path in touched)

    second = mibf("rerun", "--all", str(fleet))
    assert (second.status, second.stdout) == (0, ""), "no output if there is nothing to do"
    assert contents(fleet) == after
    assert mibf("rerun", "--all", str(fleet), "--json").json["nothing_to_do"]
    assert Counter(run.state for run in runs(str(fleet)).runs) == {"current": 49, "unmapped": 1}


def test_runs_prints_one_line_per_run_and_failure_causes(reference: Mapped, tmp_path: Path) -> None:
    mapped = reference.copy(tmp_path / "scene")
    fail_at_corner(mapped)
    lines = mibf("runs", str(mapped.folder)).stdout.splitlines()
    assert lines[0].startswith(f"failed     {mapped.folder / 'work'} main; 9 tiles: ")
    assert "4 failed" in lines[0]
    assert "sources/optical/c/0/1/1" in lines[1]
    assert lines[-1] == "1 run: 1 failed"


@pytest.mark.parametrize("options", [[], ["--parallel", "3"]], ids=["one after the other", "in parallel"])
def test_failing_runs_do_not_stop_rerun_of_the_others(reference: Mapped, tmp_path: Path, options: list[str]) -> None:
    fleet = tmp_path / "fleet"
    for name in ("a-unreadable", "b-lasting", "c-due"):
        shutil.copytree(reference.folder / "work", fleet / name)
    (fleet / "a-unreadable/runs/main/map.yaml").write_text("workspace: [")
    shard = fleet / "b-lasting/stores/small.zarr/sources/optical/c/0/1/1"
    age(fleet / "b-lasting")
    shard.write_bytes(shard.read_bytes()[:-40])
    age(fleet / "c-due")
    done = mibf("rerun", "--all", str(fleet), "--json", *options)
    assert done.status == 3
    assert ("[c-due main] == rerun" in done.stderr) == bool(options)
    ended = {Path(rerun["workspace"]).name: rerun["status"] for rerun in done.json["reruns"]}
    assert ended == {"a-unreadable": 2, "b-lasting": 3, "c-due": 0}
    assert {path.name for path in (fleet / "c-due/maps/small/main").glob("*.tif")} >= {"class.tif", "entropy.tif"}


def test_workspace_leased_by_another_run_is_skipped(reference: Mapped, tmp_path: Path) -> None:
    mapped = reference.copy(tmp_path / "scene")
    age(mapped.folder / "work")
    before = mapped.published()
    with acquire(str(mapped.folder / "work"), what="mibf map on another machine"):
        (run,) = runs(str(mapped.folder)).runs
        assert (run.state, run.holder is not None and "mibf map on another machine" in run.holder) == ("due", True)
        done = mibf("rerun", "--all", str(mapped.folder), "--json")
    assert done.status == 4
    (rerun,) = done.json["reruns"]
    assert (rerun["status"], "another run holds the workspace" in rerun["lines"][0]) == (4, True)
    assert mapped.published() == before
    assert mibf("rerun", "--all", str(mapped.folder)).status == 0


def test_tiles_past_max_attempts_are_skipped_and_listed(reference: Mapped, tmp_path: Path) -> None:
    mapped = reference.copy(tmp_path / "scene")
    fail_at_corner(mapped)
    shard = mapped.shard(1, 1)
    shard.write_bytes(shard.read_bytes()[:-40])
    events = len(mapped.events())
    done = mibf("rerun", "--all", str(mapped.folder), "--max-attempts", "1", "--json")
    assert done.status == 3
    assert len(mapped.events()) == events, "no tile was attempted"
    (rerun,) = done.json["reruns"]
    assert rerun["figures"]["scenes"][0]["tiles"]["failed"] == 4
    assert any("  skipped 4 of the failed tiles" in line for line in rerun["lines"]), rerun["lines"]


def test_rerun_of_a_moved_workspace_writes_to_the_new_location(reference: Mapped, tmp_path: Path) -> None:
    """The saved configuration names the original location; the rerun must not write there."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(reference.folder / "work", moved)
    (moved / "maps/small/main/class.tif").unlink()
    found = rerun_all(str(moved), TileRequest())
    assert [rerun.status for rerun in found.reruns] == [0]
    assert (moved / "maps/small/main/class.tif").read_bytes() == reference.published()["class.tif"]


def test_find_runs_does_not_list_stores_and_maps(reference: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(reference.folder / "work", tmp_path / "deep/er/work")
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
        (["rerun", "--all", ".", "--set", "map.tile_size=64"], "apply to a single run"),
        (["rerun", "--all", "{folder}/none"], "folder not found"),
        (["runs", "{folder}/none"], "folder not found"),
        (["rerun", "some.yaml", "--parallel", "2"], "--parallel applies to --all"),
    ],
)
def test_invalid_arguments_exit_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    found = mibf(*(part.format(folder=tmp_path) for part in arguments))
    assert found.status == 2
    assert message in found.stderr
    assert not list(tmp_path.iterdir())


def test_folder_without_runs_lists_0_runs(tmp_path: Path) -> None:
    (tmp_path / "some/folders").mkdir(parents=True)
    found = mibf("runs", str(tmp_path))
    assert (found.status, found.stdout) == (0, "0 runs\n")


class _Busy(http.server.BaseHTTPRequestHandler):
    """HTTP handler that answers every request with 503."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Suppress request logging."""


@pytest.mark.parametrize(
    ("credentials", "why"),
    [
        ({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}, "Service Unavailable"),
        ({"AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none"}, "Unable to locate credentials"),
    ],
    ids=["throttled", "no credentials"],
)
def test_unreachable_bucket_exits_2_with_cause(
    credentials: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}", "AWS_EC2_METADATA_DISABLED": "true"}
        for name, value in (endpoint | credentials).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # its keys do not include the environment
        done = mibf("runs", "s3://bucket/areas")
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
    assert done.status == 2, done.stderr
    assert done.stderr.startswith("mibf: s3://bucket/areas: cannot be reached (")
    assert why in done.stderr


def test_bucket_denying_access_raises_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> Any:
        raise PermissionError(f"Forbidden: {url}")

    monkeypatch.setattr(storage, "exists", refuse)
    with pytest.raises(InputError, match=r"s3://bucket/areas: access denied"):
        find_runs("s3://bucket/areas")
