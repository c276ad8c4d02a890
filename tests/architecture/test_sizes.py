"""Modules, functions and folders stay small enough to read; `make metrics` prints all sizes."""

from __future__ import annotations

import runpy

from tests.support.paths import ROOT


def test_no_module_function_or_folder_is_above_its_limit() -> None:
    metrics = runpy.run_path(str(ROOT / ".ci" / "metrics.py"))["measure"](ROOT)
    assert metrics.modules
    assert metrics.functions
    assert metrics.violations() == []


def test_tests_mirror_the_packages() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    tested = {folder for folder in folders if folder.parts[:1] in (("mibf",), ("pipeline",), ("jobs",))}
    packages = {
        path.parent.relative_to(ROOT) for name in ("mibf", "pipeline", "jobs") for path in (ROOT / name).rglob("*.py")
    }
    assert tested == packages
