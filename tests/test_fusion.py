"""On a synthetic scene, whose classes no single source can tell, two sources tell them; trained without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

OF_TRAINING = ("train.workers=0", "train.threads=1", "train.epochs=4", "train.batch=128")


def mibf(*arguments: str) -> Any:
    result = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments, "--json"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_two_sources_tell_what_neither_tells_alone(tmp_path: Path) -> None:
    mibf("synth", str(tmp_path / "toy"), "--size", "192", "--bands", "4+2", "--labelled", "0.4")
    config = str(tmp_path / "toy/synth.yaml")
    settings = [part for key in OF_TRAINING for part in ("--set", key)]
    mibf("prepare", config, *settings)
    found = {}
    for variant, model in (
        ("both", {}),
        ("first", {"sources": ["source1"], "without": ["noise", "relation"]}),
        ("second", {"sources": ["source2"], "without": ["noise", "relation"]}),
    ):
        own = [*settings, "--set", f"run={variant}"]
        own += [part for key, value in model.items() for part in ("--set", f"model.{key}={json.dumps(value)}")]
        mibf("train", config, *own)
        found[variant] = mibf("evaluate", config, *own)["stages"][0]["figures"]["overall_accuracy"]
    assert found["both"] >= 0.95
    assert found["first"] <= 0.6
    assert found["second"] <= 0.6
