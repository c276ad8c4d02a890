"""Recorded environment of a run: packages, commit, data and hardware, without host names or credentials."""

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

from jobs.config.loader import load
from jobs.workflow import provenance as module
from jobs.workflow.manifest import read_manifest
from jobs.workflow.provenance import environment, hardware, source_code, versions
from jobs.workflow.workspace import Workspace
from tests.support.scenes import SmallScene


def test_environment_is_valid_json_with_packages_and_inputs_but_no_host(
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


def test_missing_inputs_are_null(scene: SmallScene) -> None:
    config = load(str(scene.write_config()))
    (scene.folder / "radar.tif").unlink()
    data = environment(config, Workspace.of(config))["data"]
    assert data["prepare"] is None
    assert data["inputs"][str(scene.folder / "radar.tif")] is None
    assert data["inputs"][str(scene.folder / "optical.tif")]


def test_input_urls_are_redacted(scene: SmallScene) -> None:
    changed: dict[str, Any] = scene.config()
    changed["scenes"][0]["sources"]["radar"]["url"] = "http://me:secret@127.0.0.1:1/radar.tif?sig=secret"
    config = load(str(scene.write_config(**changed)))
    found = environment(config, Workspace.of(config))
    assert found["data"]["inputs"]["http://127.0.0.1:1/radar.tif"] is None
    assert "secret" not in json.dumps(found)


def test_missing_stac_item_makes_input_list_null(scene: SmallScene) -> None:
    changed: dict[str, Any] = scene.config()
    changed["scenes"][0]["sources"]["radar"] = {"stac": {"url": str(scene.folder / "item.json"), "assets": ["vv"]}}
    config = load(str(scene.write_config(**changed)))
    assert environment(config, Workspace.of(config))["data"]["inputs"] is None


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a git repository that contains one of our packages."""
    (tmp_path / "mibf").mkdir()
    (tmp_path / "mibf" / "a.py").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_source_code_reports_commit_and_modified_flag(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert source_code(checkout) == {"commit": commit, "modified": False}
    (checkout / "notes").write_text("not part of a package")
    assert source_code(checkout) == {"commit": commit, "modified": False}
    (checkout / "mibf" / "b.py").write_text("")
    assert source_code(checkout) == {"commit": commit, "modified": True}


def test_git_dir_variable_is_ignored(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    found = source_code(checkout)
    monkeypatch.undo()
    assert found == {"commit": git(checkout, "rev-parse", "HEAD"), "modified": False}


def test_package_inside_another_checkout_has_no_commit(checkout: Path) -> None:
    assert source_code(checkout / "mibf") is None


def test_repository_without_commit_gives_none(tmp_path: Path) -> None:
    git(tmp_path, "init")
    assert source_code(tmp_path) is None


@pytest.mark.parametrize("script", ["exit 1", "sleep 60", None])
def test_failing_hanging_or_missing_git_gives_none(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    programs = tmp_path_factory.mktemp("programs")
    if script:
        (programs / "git").write_text(f"#!/bin/sh\nexec {script}\n" if "sleep" in script else f"#!/bin/sh\n{script}\n")
        (programs / "git").chmod(0o755)
    path = os.environ["PATH"] if script and "sleep" in script else ""
    monkeypatch.setenv("PATH", f"{programs}:{path}")
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.3)
    begun = time.monotonic()
    assert source_code(checkout) is None
    assert time.monotonic() - begun < 10


def test_hardware_reports_cpu_memory_and_gpu_count() -> None:
    found = hardware()
    assert found["cpu"]
    assert 1 <= found["cores"]["usable"] <= found["cores"]["logical"]
    assert found["memory_bytes"] > 1e8
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_hardware_lists_gpus_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_driver_version_is_read_from_kernel_file(tmp_path: Path, text: str, version: str | None) -> None:
    (tmp_path / "version").write_text(text)
    assert module._driver(tmp_path / "version") == version
    assert module._driver(tmp_path / "none") is None
