"""Models that no training has made, for tests of what is around them."""

from __future__ import annotations

from pathlib import Path

import torch

from mibf.bundle import Bundle
from mibf.network import MIBFNet
from mibf.scaling import scaling_from_json
from mibf.spec import NARROW, NetworkSpec, SourceSpec
from pipeline import bundles, storage
from pipeline.store import PatchStore


def write_model(folder: Path, *, seed: int = 0) -> None:
    """Write an untrained model of the small scene that was prepared in a folder, beside it as `model`."""
    torch.manual_seed(seed)
    spec = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW)), classes=3, patch=5)
    scaling = scaling_from_json(storage.read_json(str(folder / "work/scaling.json")))
    classes = PatchStore(str(folder / "work/stores/small.zarr")).classes
    bundles.write_bundle(str(folder / "model"), Bundle(spec, MIBFNet(spec).state_dict(), scaling, classes))
