"""Fixtures of the GPU checks: they skip without a GPU, and collect figures in a file and a table."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.bench.harness.random_workspace import random_model, random_workspace
from jobs.config.config import Config
from pipeline.parallel.cpu_count import cpu_count
from tests.support.gpu import BANDS, FIGURES, ON_GPU, Figures

_FIGURES = Figures(FIGURES)


@pytest.fixture(scope="session", autouse=True)
def gpu() -> Iterator[None]:
    """Skip without a GPU; use all cores, as the commands do, and describe the machine."""
    if ON_GPU and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    threads = torch.get_num_threads()
    torch.set_num_threads(cpu_count())
    name = torch.cuda.get_device_name() if ON_GPU else "CPU, reduced sizes"
    versions = {"torch": torch.__version__, "python": platform.python_version(), "cudnn": torch.backends.cudnn.version()}
    _FIGURES.add("machine", device=name, cores=cpu_count(), **versions)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def keep_cudnn_settings() -> Iterator[None]:
    """Restore what training sets for the process: deterministic algorithms."""
    before = torch.backends.cudnn.deterministic
    yield
    torch.backends.cudnn.deterministic = before


@pytest.fixture(scope="session")
def figures(gpu: None) -> Figures:
    """The figures of this run."""
    del gpu
    return _FIGURES


@pytest.fixture(scope="session")
def small(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A prepared scene of 256 x 256 random pixels with an untrained model."""
    del gpu
    return _prepared(tmp_path_factory.mktemp("small"), BANDS[1], 256 if ON_GPU else 128)


@pytest.fixture(scope="session")
def scenes(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Config]:
    """A prepared scene of random pixels with an untrained model for each choice of bands, to time."""
    del gpu
    sides = dict(zip(BANDS, (2048, 4096) if ON_GPU else (128, 128), strict=True))
    return {bands: _prepared(tmp_path_factory.mktemp("scene"), bands, side) for bands, side in sides.items()}


def _prepared(folder: Path, bands: tuple[int, ...], side: int) -> Config:
    config = random_workspace(folder, bands=bands, side=side)
    random_model(config)
    return config.model_copy(update={"map": config.map.model_copy(update={"workers": 0, "drift": "ignore"})})


def pytest_runtest_logreport(report: Any) -> None:
    """Record the outcome of every GPU check."""
    if "gpu" not in report.keywords or not (report.when == "call" or report.outcome != "passed"):
        return
    if report.outcome == "skipped" and not _FIGURES.parts:
        return  # no GPU: nothing is written
    name = report.nodeid.rpartition("/")[2]
    cause = str(report.longrepr[2]) if report.outcome == "skipped" else report.longreprtext[-2000:]
    _FIGURES.add("outcomes", **{name: report.outcome if report.outcome == "passed" else f"{report.outcome}: {cause}"})


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures."""
    if not _FIGURES.parts:
        return
    terminalreporter.section(f"figures ({_FIGURES.path})")
    for line in _FIGURES.lines():
        if not line.startswith("outcomes"):
            terminalreporter.write_line(line)
