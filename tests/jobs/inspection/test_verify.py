"""`mibf verify` of patch stores: corrupt objects are named, and `mibf prepare` rewrites them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli.common import app
from jobs.config.loader import load
from tests.support.commands import run
from tests.support.scenes import SmallScene
from tests.support.stores import SHARDS
from tests.support.verified_map import Project


def copied_workspace(scene: SmallScene, folder: Path) -> str:
    """Copy a scene's workspace to `folder/work`; return the override of the configuration that names the copy."""
    shutil.copytree(scene.folder / "work", folder / "work")
    return f"workspace={folder / 'work'}"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: p.unlink(), "is missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes instead of"),
        (lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]), "a different checksum"),
    ],
)
@pytest.mark.parametrize("key", ["sources/optical/c/0/1/2", "valid/radar/c/0/0", "labels/zarr.json", "zarr.json"])
def test_verify_names_corrupt_objects_and_prepare_rewrites_them(
    prepared_large: SmallScene, tmp_path: Path, key: str, harm: Any, message: str
) -> None:
    place = copied_workspace(prepared_large, tmp_path)
    harm(tmp_path / "work/stores/small.zarr" / key)
    result = CliRunner().invoke(app, ["verify", str(prepared_large.write_config()), "--set", place])
    assert result.exit_code == 3
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("  ")]
    assert line.startswith(f"  {key}")
    assert message in line
    if key == "sources/optical/c/0/1/2":
        assert "(rows 128 to 255, columns 256 to 383)" in line
    assert "run `mibf prepare` to rewrite it" in result.stderr
    run(prepared_large, SHARDS, place)
    assert run(prepared_large, place, command="verify")["stores"][0]["intact"]


def test_verify_before_prepare_exits_2(scene: SmallScene) -> None:
    assert "`prepare` is not finished" in run(scene, command="verify", status=2).stderr


def test_verify_continues_after_an_unreadable_object(prepared_large: SmallScene, tmp_path: Path) -> None:
    place = copied_workspace(prepared_large, tmp_path)
    path = tmp_path / "work/stores/small.zarr/labels/c/0/0"
    path.unlink()
    path.mkdir()
    result = CliRunner().invoke(app, ["verify", str(prepared_large.write_config()), "--set", place])
    assert result.exit_code == 3
    assert "labels/c/0/0" in result.stdout


def test_verify_works_without_the_input_files(scene: SmallScene) -> None:
    run(scene)
    (scene.folder / "optical.tif").unlink()
    from jobs.workflow.runner import stale_dependencies

    assert stale_dependencies(load(str(scene.write_config())), "train") == ["prepare"]
    assert run(scene, command="verify")["stores"][0]["intact"]


def test_without_published_map_only_stores_are_checked(project: Project) -> None:
    shutil.rmtree(project.map)
    found = project.verify("--sample", "1")
    assert found["intact"] is None
    assert "small: map: not published" in project.run("verify").stdout
    shutil.rmtree(project.folder / "model")
    project.run("verify")


def test_verify_writes_nothing(project: Project) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*")}
    project.verify("--sample", "1")
    assert {path: path.stat().st_mtime_ns for path in project.folder.rglob("*")} == before
