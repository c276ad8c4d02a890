"""Shell scripts of infra/: strict, executable, and without ShellCheck findings."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.manifests import INFRA, program

SCRIPTS = sorted(INFRA.rglob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_script_is_strict_executable_and_kills_nothing_by_name(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    # Never kill processes that the script did not start.
    assert not re.search(r"\b(pkill|killall|ray stop|fuser)\b", text)
    assert "0.0.0.0" not in text


#: Hadolint rules that apply only to images.
IMAGE_RULES = ["DL3001", "DL3003", "DL4006"]


def shellcheck(text: str) -> subprocess.CompletedProcess[str]:
    """Run the ShellCheck built into hadolint on a script, wrapped in a Dockerfile."""
    recipe = f'FROM image:1\nSHELL ["/bin/bash", "-c"]\nRUN <<\'END_OF_SCRIPT\'\n{text}\nEND_OF_SCRIPT\n'
    ignored = [word for rule in IMAGE_RULES for word in ("--ignore", rule)]
    arguments = [program("hadolint"), "--no-color", "--failure-threshold", "style", *ignored, "-"]
    return subprocess.run(arguments, input=recipe, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_reports_nothing_for_script(script: Path) -> None:
    done = shellcheck(script.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SC2086" in shellcheck(script.read_text() + "\nrm $folder\n").stdout
