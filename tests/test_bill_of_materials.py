"""What mibf is made of can be listed, and asked after: `make sbom` and `make audit`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Nothing listens there.
NOWHERE = "http://127.0.0.1:1/v1/query"


def recipe(target: str) -> str:
    """What make would do for a target, had nothing been made."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    done = subprocess.run([make, "-n", "-B", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_bill_is_of_what_is_installed_and_not_of_the_tools() -> None:
    steps = recipe("sbom")
    assert ".venv-tools/bin/cyclonedx-py environment .venv/bin/python --pyproject pyproject.toml" in steps
    assert "-o sbom.json" in steps
    assert ".venv-tools/bin/python -m pip install" in steps
    assert "cyclonedx" not in "".join(line for line in steps.splitlines() if ".venv/bin/python -m pip" in line)


def test_tools_are_of_one_version() -> None:
    installed = recipe(".venv-tools/.installed")
    assert "'cyclonedx-bom==7." in installed
    assert "'pip-audit==2." in installed
    assert {"sbom.json", ".venv-tools/"} <= set((ROOT / ".gitignore").read_text().split())


@pytest.mark.slow
def test_the_bill_lists_what_matters(tmp_path: Path) -> None:
    beside = ROOT / ".venv-tools/bin/cyclonedx-py"
    tool = str(beside) if beside.exists() else shutil.which("cyclonedx-py")
    if tool is None:
        pytest.skip("cyclonedx-bom is not installed; `make sbom` installs it")
    bill = tmp_path / "sbom.json"
    arguments = ["environment", sys.executable, "--pyproject", str(ROOT / "pyproject.toml"), "--short-PURLs"]
    subprocess.run([tool, *arguments, "--output-reproducible", "-o", str(bill)], check=True)
    listed = json.loads(bill.read_text())
    assert listed["bomFormat"] == "CycloneDX"
    names = {part["name"].lower() for part in listed["components"]}
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    assert {"torch", "ray", "zarr"} <= names
    assert {name.split("[")[0].split(">")[0].lower() for name in wanted} <= names
    assert "file://" not in bill.read_text(), "no place of this machine"


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"OSV_URL": NOWHERE, "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    command = [str(ROOT / ".ci/audit"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_an_audit_without_a_network_says_so() -> None:
    strict, told = audit(), audit("--if-reachable")
    for done in (strict, told):
        assert f"audit: not run: {NOWHERE} cannot be reached from here" in done.stdout
        assert done.stderr == ""
    assert (strict.returncode, told.returncode) == (1, 0)


def test_continuous_integration_never_fails_for_lack_of_a_network() -> None:
    assert ".ci/audit --if-reachable" in (ROOT / ".ci/run").read_text()
