"""Files whole or not at all, fingerprints that change with their file, one writer at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from mibf.errors import InputError
from pipeline import storage
from pipeline.lease import LeaseHeldError, held
from tests.conftest import SmallScene


@pytest.mark.parametrize("place", ["local", "file", "memory"])
def test_bytes_come_back_from_any_kind_of_location(place: str, tmp_path: Path) -> None:
    root = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{tmp_path.name}"}[place]
    url = storage.join(root, "a", "b.bin")
    assert not storage.exists(url)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(url)
    for content in (b"one", b"another"):
        storage.write_bytes(url, content)
        assert storage.read_bytes(url) == content
    group = storage.open_zarr(storage.join(root, "z.zarr"), mode="w")
    group.create_array("x", shape=(4,), dtype="int8")[:] = 3
    assert storage.open_zarr(storage.join(root, "z.zarr"))["x"][:].tolist() == [3, 3, 3, 3]
    storage.remove(storage.join(root, "a"))
    storage.remove(storage.join(root, "a"))
    assert not storage.exists(url)


def test_publishing_leaves_the_whole_file_and_no_other(tmp_path: Path) -> None:
    local = tmp_path / "new"
    local.write_bytes(b"new")
    target = tmp_path / "out" / "file"
    storage.write_bytes(str(target), b"old")
    storage.publish(str(local), str(target))
    assert target.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["file"]


def test_json_has_null_for_nan(tmp_path: Path) -> None:
    url = str(tmp_path / "x.json")
    storage.write_json(url, {"a": [float("nan"), 1.5], "b": float("inf")})
    assert storage.read_json(url) == {"a": [None, 1.5], "b": None}


def test_a_fingerprint_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    first = storage.fingerprint(str(path))
    assert storage.fingerprint(str(path)) == first
    os.utime(path, ns=(1, 1))
    assert storage.fingerprint(str(path)) != first
    assert storage.digest({"a": 1, "b": 2}) == storage.digest({"b": 2, "a": 1}) != storage.digest({"a": 2, "b": 1})


def test_the_check_for_writing_leaves_nothing(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path / "deep" / "down"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no-such"):
        storage.open_url("no-such://x")


def test_a_workspace_has_one_holder(tmp_path: Path) -> None:
    workspace = str(tmp_path / "work")
    with held(workspace):
        with pytest.raises(LeaseHeldError, match=f'"pid": {os.getpid()}'), held(workspace):
            pass
        assert (tmp_path / "work" / "lease.json").exists()
    assert not (tmp_path / "work").exists()
    with held(workspace):
        pass


def test_a_dead_holder_holds_nothing(tmp_path: Path) -> None:
    program = f"import os\nfrom pipeline.lease import held\nwith held({str(tmp_path)!r}):\n    os._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert (tmp_path / "lease.json").exists()
    with held(str(tmp_path)):
        pass


def test_a_second_run_is_refused_with_status_4(scene: SmallScene) -> None:
    with held(str(scene.folder / "work")):
        result = CliRunner().invoke(app, ["prepare", str(scene.write_config())])
        assert result.exit_code == 4
        assert "another run holds the workspace" in result.stderr
        assert not (scene.folder / "work" / "stores").exists()


def test_a_stage_is_current_only_while_all_that_it_made_is_there(scene: SmallScene) -> None:
    from jobs.config import load
    from jobs.prepare import prepare
    from jobs.stages import run_stage

    config = load(str(scene.write_config()))
    assert run_stage(config, "prepare", prepare, keep_current=True)[1]
    assert not run_stage(config, "prepare", prepare, keep_current=True)[1]
    storage.remove(str(scene.folder / "work" / "stores" / "small.zarr"))
    assert run_stage(config, "prepare", prepare, keep_current=True)[1]
    os.utime(scene.folder / "radar.tif")
    assert run_stage(config, "prepare", prepare, keep_current=True)[1]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:secret@host:80/a.tif?sig=secret", "https://host:80/a.tif"),
        ("https://secret@host/a.tif", "https://host/a.tif"),
        ("postgresql+psycopg2://me:secret@host/runs", "postgresql+psycopg2://host/runs"),
        ("abfs://container@account.dfs.core.windows.net/a.tif", "abfs://container@account.dfs.core.windows.net/a.tif"),
        ("http://host:80/a@b:c", "http://host:80/a@b:c"),
    ],
)
def test_credentials_in_a_url_are_not_shown(url: str, expected: str) -> None:
    assert storage.shown(url) == expected
    assert storage.without_queries(f"'{url}' is gone") == f"'{expected}' is gone"
