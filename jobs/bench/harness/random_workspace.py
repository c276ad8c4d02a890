"""Prepared scene of random values and a model for it, for benchmarks without a CONFIG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import torch
import yaml
from affine import Affine
from numpy.typing import NDArray

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.prepare.stage import prepare
from jobs.train.settings import network_spec
from jobs.workflow.runner import run_stage
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.network.mibfnet import MIBFNet
from mibf.normalization import scaling_from_json
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.store.patch_store import PatchStore

CLASSES = 11
#: Side in pixels of the squares of one class.
FIELD = 16


def random_workspace(folder: Path, *, bands: Sequence[int], side: int) -> Config:
    """Create and prepare a scene of side x side pixels, all of them labelled, fifteen sixteenths for training.

    The first source holds 16-bit integers with about 8 random bits each; the others hold random floats. Compressed, they
    are at least as large as real data. `side` must be a multiple of 32.
    """
    generator = np.random.default_rng(0)
    sources = {}
    for number, count in enumerate(bands):
        noise = generator.standard_normal((count, side, side), np.float32)
        values = noise if number else (1000 + 60 * noise).astype(np.uint16)
        sources[f"source{number + 1}"] = {"url": _write(folder / f"source{number + 1}.tif", values)}
    fields = generator.integers(1, CLASSES + 1, (1, side // FIELD, side // FIELD), np.uint8)
    split = np.ones((1, side, side), np.uint8)
    split[:, -side // 16 :] = 2
    split[:, -side // 32 :] = 3
    labels = _write(folder / "labels.tif", fields.repeat(FIELD, axis=1).repeat(FIELD, axis=2))
    path = folder / "random.yaml"
    scene = {"name": "random", "grid": {"like": "source1"}, "sources": sources, "labels": {"url": labels}}
    content = {
        "name": "random",
        "workspace": str(folder / "work"),
        "scenes": [scene],
        "classes": [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)],
        "split": {"method": "raster", "url": _write(folder / "split.tif", split)},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    config = load(str(path))
    run_stage(config, "prepare", prepare, keep_current=False)
    return config


def random_model(config: Config) -> None:
    """Write an untrained model with random weights as the model of a prepared configuration's run."""
    workspace = Workspace.of(config)
    store = PatchStore(workspace.store(config.scenes[0].name))
    spec = network_spec(config, store)
    torch.manual_seed(0)
    scaling = scaling_from_json(storage.read_json(workspace.scaling))
    workspace.write_bundle(Bundle.of_network(spec, MIBFNet(spec).state_dict(), scaling, store.classes), Lease())


def _write(path: Path, values: NDArray[np.generic]) -> str:
    count, height, width = values.shape
    grid = {"crs": "EPSG:32633", "transform": Affine(10.0, 0.0, 400000.0, 0.0, -10.0, 5800000.0)}
    form = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=256, blockysize=256, **form, **grid) as dataset:
        dataset.write(values)
    return str(path)
