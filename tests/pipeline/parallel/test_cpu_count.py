"""The number of CPUs is the least that limits this process; joblib and Dask read the limits of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import dask.system
import pytest

from pipeline.parallel.cpu_count import cpu_count
from pipeline.parallel.executor import ThreadExecutor
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("container", "service", "openmp", "expected"),
    [
        (16, 16, None, 16),
        (3, 16, None, 3),
        (16, 2, None, 2),
        (16, 16, "4", 4),
        (3, 16, "4", 3),
        (16, 16, "4,2", 4),
        (16, 16, "0", 16),
        (16, 16, "many", 16),
    ],
)
def test_least_limit_counts(
    monkeypatch: pytest.MonkeyPatch, container: int, service: int, openmp: str | None, expected: int
) -> None:
    monkeypatch.setattr("pipeline.parallel.cpu_count.container_cpu_count", lambda: container)
    monkeypatch.setattr(dask.system, "cpu_count", lambda: service)
    monkeypatch.delenv("OMP_NUM_THREADS") if openmp is None else monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert cpu_count() == expected
    assert ThreadExecutor().workers == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_affinity_is_respected_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    assert cpu_count() <= len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu_count() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_no_other_module_counts_cpus() -> None:
    """`os.cpu_count`, Dask's CPU_COUNT and GDAL's ALL_CPUS are those of the machine, not of this process."""
    owner, recorded = ROOT / "pipeline/parallel/cpu_count.py", ROOT / "jobs/workflow/provenance.py"
    words = ("os.cpu_count", "CPU_COUNT", "psutil.cpu_count", "sched_getaffinity", "all_cpus")
    excluded = {owner, recorded, ROOT / "jobs/bench/batches.py"}  # the last two report and restore affinity
    paths = [path for package in ("jobs", "pipeline", "mibf") for path in (ROOT / package).rglob("*.py")]
    found = [path.relative_to(ROOT) for path in paths if path not in excluded and _has(path, words)]
    assert found == []


def _has(path: Path, words: tuple[str, ...]) -> bool:
    text = path.read_text()
    return any(word in text for word in words)
