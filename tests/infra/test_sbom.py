"""Software bill of materials and vulnerability audit: `make sbom` and `make audit`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

#: URL that refuses connections.
NOWHERE = "http://127.0.0.1:1/v1/query"


def recipe(target: str) -> str:
    """Return the commands that make would run to build a target from scratch."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    done = subprocess.run([make, "-n", "-B", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_sbom_covers_the_installed_environment_without_the_tools() -> None:
    steps = recipe("sbom")
    assert ".venv-tools/bin/cyclonedx-py environment .venv/bin/python --pyproject pyproject.toml" in steps
    assert "-o sbom.json" in steps
    assert ".venv-tools/bin/python -m pip install" in steps
    assert "cyclonedx" not in "".join(line for line in steps.splitlines() if ".venv/bin/python -m pip" in line)


def test_tool_versions_are_pinned_and_outputs_git_ignored() -> None:
    installed = recipe(".venv-tools/.installed")
    assert "'cyclonedx-bom==7." in installed
    assert "'pip-audit==2." in installed
    assert {"sbom.json", ".venv-tools"} <= set((ROOT / ".gitignore").read_text().split())


@pytest.mark.slow
def test_sbom_lists_all_dependencies_and_no_local_paths(tmp_path: Path) -> None:
    local = ROOT / ".venv-tools/bin/cyclonedx-py"
    tool = str(local) if local.exists() else shutil.which("cyclonedx-py")
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
    assert "file://" not in bill.read_text(), "no local path"


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"OSV_URL": NOWHERE, "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    command = [str(ROOT / ".ci/audit"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_audit_without_network_reports_that_it_did_not_run() -> None:
    strict, lenient = audit(), audit("--if-reachable")
    for done in (strict, lenient):
        assert f"audit: not run: {NOWHERE} cannot be reached from here" in done.stdout
        assert done.stderr == ""
    assert (strict.returncode, lenient.returncode) == (1, 0)


def test_ci_runs_the_audit_only_if_reachable() -> None:
    assert ".ci/audit --if-reachable" in (ROOT / ".ci/run").read_text()
