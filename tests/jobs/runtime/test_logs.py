"""MIBF_LOG=json: every line on standard error is a JSON object with its run, stage and scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.mapped_scene import Mapped

pytestmark = pytest.mark.slow


def read(errors: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in errors.splitlines()]


def test_json_log_lines_carry_run_stage_and_tile(trained: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = trained.copy(tmp_path / "scene")
    monkeypatch.setenv("MIBF_LOG", "json")
    shard = mapped.shard(1, 1)
    content = shard.read_bytes()
    shard.write_bytes(content[:-40])
    lines = read(mapped.does("map", status=3).stderr)
    assert all(line["timestamp"].endswith("Z") and line["level"] in ("info", "warning", "error") for line in lines)
    tiles = [line for line in lines if line["event"].startswith("tile ")]
    assert len(tiles) == 9
    failed = [line for line in tiles if line["event"] == "tile failed"]
    assert {line["tile"] for line in failed} == {f"small/{t}" for t in ("y64_x64", "y64_x128", "y128_x64", "y128_x128")}
    assert all("sources/optical/c/0/1/1" in line["cause"] and line["level"] == "error" for line in failed)
    subject = {"run": "main", "stage": "map", "name": "small", "workspace": str(mapped.folder / "work"), "scene": "small"}
    assert all(line.items() >= subject.items() for line in tiles)
    assert all(line["pixels"] > 0 and line["compute_seconds"] > 0 for line in tiles if line not in failed)
    last = lines[-1]
    assert (last["level"], last["event"].startswith("small: 4 of 9 tiles failed")) == ("error", True)

    shard.write_bytes(content)
    again = mapped.does("rerun", "--json")
    assert again.json["complete"], "the JSON summary is still on standard output"
    assert len([line for line in read(again.stderr) if line["event"] == "tile done"]) == 4


def test_json_log_contains_warning_about_stale_stage(
    trained: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = trained.copy(tmp_path / "scene")
    monkeypatch.setenv("MIBF_LOG", "json")
    with mapped.changed() as values:
        values["split"]["seed"] = 5
    lines = read(mapped.does("map").stderr)
    assert any("`prepare` is not current" in line["event"] for line in lines)


def test_unknown_log_format_exits_2(trained: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIBF_LOG", "xml")
    refused = trained.does("status", status=2)
    assert "MIBF_LOG=xml: must be `text` or `json`" in refused.stderr
