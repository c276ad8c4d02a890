"""Two workers that share one GPU, by the commands: Ray gives each a half."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from jobs.bench.harness.random_workspace import random_workspace
from jobs.config.config import Config
from jobs.workflow.workspace import Workspace
from pipeline.io import storage
from tests.support.gpu import BANDS, ON_GPU, Figures
from tests.support.paths import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]
SHARED = ("resources.workers_per_gpu=2", f"resources.gpus={str(ON_GPU).lower()}")
DEVICE_TEXT = "2 workers with 1/2 of a GPU each" if ON_GPU else "2 workers with 1 CPU each"


def mibf(config: Config, stage: str, *overrides: str) -> tuple[str, float]:
    """Run a stage of a scene in a process of its own; return what it reports, and the seconds that it took."""
    path = Path(Workspace.of(config).url).parent / "random.yaml"
    command = [sys.executable, "-m", "jobs.cli", stage, str(path), *(part for o in overrides for part in ("--set", o))]
    clock = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr, time.perf_counter() - clock


def test_two_workers_on_one_gpu_map_the_bytes_of_one_process(small: Config, figures: Figures) -> None:
    workspace = Workspace.of(small)
    common = (f"map.model={workspace.bundle}", "map.drift=ignore", "map.tile_size=64", "map.precision=bf16")
    _, alone = mibf(small, "map", *common, "run=alone", "map.workers=0")
    reported, shared = mibf(small, "map", *common, *SHARED, "run=shared", "map.workers=2")
    figures.add("two workers on one GPU, map", one_process_seconds=alone, two_workers_seconds=shared)
    assert DEVICE_TEXT in reported
    folders = [Path(workspace.url, "maps", small.scenes[0].name, run) for run in ("alone", "shared")]
    names = sorted(path.name for path in folders[0].glob("*.tif"))
    assert names == sorted(path.name for path in folders[1].glob("*.tif"))
    assert "class.tif" in names
    for name in names:
        pixels = []
        for folder in folders:
            with rasterio.open(folder / name) as dataset:
                pixels.append(dataset.read())
        np.testing.assert_array_equal(*pixels, err_msg=name)


def test_two_workers_on_one_gpu_train_by_graphs(figures: Figures, tmp_path: Path) -> None:
    config = random_workspace(tmp_path, bands=BANDS[1], side=256)  # each worker reads whole windows of 128 x 128 pixels
    size, share = (1024, 1.0) if ON_GPU else (256, 0.1)
    reported, seconds = mibf(
        config,
        "train",
        *SHARED,
        "run=trained",
        "train.workers=2",
        "train.recipe=standard",
        "train.epochs=1",
        "train.precision=bf16",
        f"train.batch_size={size}",
        f"sampling.epoch_fraction={share}",
    )
    figures.add("two workers on one GPU, training", seconds=seconds)
    assert DEVICE_TEXT in reported
    assert "kernel by kernel" not in reported
    result = storage.read_json(Workspace.of(config.model_copy(update={"run": "trained"})).result(0))
    assert np.isfinite(result["chosen"]["train_loss"])
