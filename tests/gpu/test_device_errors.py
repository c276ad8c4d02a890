"""A map whose device fails, so that no later operation of the process on it succeeds: no tile is blamed for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.config.config import Config
from jobs.workflow.workspace import Workspace
from tests.support.gpu import ON_GPU, Figures
from tests.support.paths import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(150)]


def test_map_ends_at_a_device_error_without_failed_tiles(small: Config, figures: Figures, tmp_path: Path) -> None:
    path = Path(Workspace.of(small).url).parent / "random.yaml"
    command = [sys.executable, "-m", "tests.support.device_error", str(path), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    figures.add("device error", exit_status=done.returncode, stderr=[line[:200] for line in done.stderr.splitlines()[-20:]])
    found = json.loads(done.stdout.splitlines()[-1])
    figures.add("device error", **found)
    assert sum(found["states"].values()) == (256 // 64 if ON_GPU else 128 // 64) ** 2
    assert found["states"].get("failed", 0) == 0
    assert found["causes"] == []
    if ON_GPU:  # on a CPU the same program raises an ordinary error of one tile, which is tried again
        assert "the device of this process failed" in found["message"]
        assert found["states"]["done"] < sum(found["states"].values())
