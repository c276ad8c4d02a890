"""What a run was made with: packages, commit, data, hardware; and that nothing of it names hosts or credentials."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs import environment as module
from jobs.config import load
from jobs.environment import environment, hardware, source_code, versions
from jobs.stages import read_manifest
from jobs.workspace import Workspace
from tests.conftest import SmallScene


def test_a_runs_environment_is_json_and_tells_of_everything(
    prepared: tuple[SmallScene, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, workspace = prepared
    monkeypatch.setenv("RAY_ADDRESS", "http://cluster.example:8265")
    found = environment(load(str(scene.folder / "small.yaml")), workspace)
    text = json.dumps(found, allow_nan=False)
    assert "cluster.example" not in text
    host = socket.gethostname()
    assert len(host) < 4 or host not in text
    manifest = read_manifest(workspace, "prepare")
    assert manifest is not None
    assert found["data"]["prepare"]["identity"] == manifest.identity
    assert found["data"]["prepare"]["fingerprint"] == manifest.fingerprint
    assert {Path(url).name for url in found["data"]["inputs"]} == {"optical.tif", "radar.tif", "labels.tif"}
    assert all(found["data"]["inputs"].values())
    assert found["packages"] == versions()
    assert {"mibf", "torch", "ray", "zarr", "safetensors", "fsspec"} <= set(versions())


def test_inputs_that_are_gone_are_null(scene: SmallScene) -> None:
    config = load(str(scene.write_config()))
    (scene.folder / "radar.tif").unlink()
    data = environment(config, Workspace.of(config))["data"]
    assert data["prepare"] is None
    assert data["inputs"][str(scene.folder / "radar.tif")] is None
    assert data["inputs"][str(scene.folder / "optical.tif")]


def test_inputs_are_shown_without_what_signs_them(scene: SmallScene) -> None:
    changed: dict[str, Any] = scene.config()
    changed["scenes"][0]["sources"]["radar"]["url"] = "http://me:secret@127.0.0.1:1/radar.tif?sig=secret"
    config = load(str(scene.write_config(**changed)))
    found = environment(config, Workspace.of(config))
    assert found["data"]["inputs"]["http://127.0.0.1:1/radar.tif"] is None
    assert "secret" not in json.dumps(found)


def test_a_stac_item_that_is_gone_leaves_the_list_out(scene: SmallScene) -> None:
    changed: dict[str, Any] = scene.config()
    changed["scenes"][0]["sources"]["radar"] = {"stac": {"url": str(scene.folder / "item.json"), "assets": ["vv"]}}
    config = load(str(scene.write_config(**changed)))
    assert environment(config, Workspace.of(config))["data"]["inputs"] is None


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a package of ours."""
    (tmp_path / "mibf").mkdir()
    (tmp_path / "mibf" / "a.py").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_the_commit_is_told_and_whether_code_differs(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert source_code(checkout) == {"commit": commit, "modified": False}
    (checkout / "notes").write_text("not of a package")
    assert source_code(checkout) == {"commit": commit, "modified": False}
    (checkout / "mibf" / "b.py").write_text("")
    assert source_code(checkout) == {"commit": commit, "modified": True}


def test_a_hooks_environment_leads_nowhere_else(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    found = source_code(checkout)
    monkeypatch.undo()
    assert found == {"commit": git(checkout, "rev-parse", "HEAD"), "modified": False}


def test_packages_below_somebody_elses_checkout_have_no_commit(checkout: Path) -> None:
    assert source_code(checkout / "mibf") is None


def test_a_repository_without_a_commit_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init")
    assert source_code(tmp_path) is None


@pytest.mark.parametrize("script", ["exit 1", "sleep 60", None])
def test_git_that_fails_hangs_or_is_not_there_is_no_commit(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    programs = tmp_path_factory.mktemp("programs")
    if script:
        (programs / "git").write_text(f"#!/bin/sh\nexec {script}\n" if "sleep" in script else f"#!/bin/sh\n{script}\n")
        (programs / "git").chmod(0o755)
    path = os.environ["PATH"] if script and "sleep" in script else ""
    monkeypatch.setenv("PATH", f"{programs}:{path}")
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    begun = time.monotonic()
    assert source_code(checkout) is None
    assert time.monotonic() - begun < 10


def test_hardware_of_this_machine() -> None:
    found = hardware()
    assert found["cpu"]
    assert 1 <= found["cores"]["usable"] <= found["cores"]["logical"]
    assert found["memory_bytes"] > 1e8
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_gpus_are_listed_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=150_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(module, "_driver", lambda: "570.86.15")
    assert hardware()["gpus"] == [
        {"name": "NVIDIA H200", "memory_bytes": 150_000_000_000, "capability": "9.0", "driver": "570.86.15"}
    ]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC 12.3\n",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs)\n", "570.86.15"),
        ("something else\n", None),
    ],
)
def test_the_driver_is_read_from_the_kernel(tmp_path: Path, text: str, version: str | None) -> None:
    (tmp_path / "version").write_text(text)
    assert module._driver(tmp_path / "version") == version
    assert module._driver(tmp_path / "none") is None
