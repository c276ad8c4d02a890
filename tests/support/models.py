"""Untrained model bundles for tests that need any model."""

from __future__ import annotations

from pathlib import Path

import torch

from mibf.bundle.bundle import Bundle
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.normalization import scaling_from_json
from pipeline.io import model_bundle, storage
from pipeline.store.patch_store import PatchStore


def write_model(folder: Path, *, seed: int = 0) -> None:
    """Write an untrained model bundle to `folder/model`, for the small scene prepared in `folder/work`."""
    torch.manual_seed(seed)
    spec = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW)), classes=3, patch=5)
    scaling = scaling_from_json(storage.read_json(str(folder / "work/scaling.json")))
    classes = PatchStore(str(folder / "work/stores/small.zarr")).classes
    model_bundle.write_bundle(str(folder / "model"), Bundle.of_network(spec, MIBFNet(spec).state_dict(), scaling, classes))
