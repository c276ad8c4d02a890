"""A small model bundle with every field set."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from mibf.bundle.bundle import MODEL, Bundle
from mibf.bundle.classes import ClassName
from mibf.class_priors import Priors
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.normalization import BandScaling

SPEC = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW, scale=2)), classes=3, patch=5)

CLASSES = (
    ClassName(1, "open water", "#466b9f"),
    ClassName(2, "forest | wood", "#1c5f2c"),
    ClassName(5, "Dörfer", "#d1182c"),
)

PRIORS = Priors(natural=(0.7, 0.2, 0.1), trained=(0.4, 0.3, 0.3))

PROVENANCE: dict[str, Any] = {
    "run": "first try!",
    "fingerprint": "abc",
    "chosen": {
        "epoch": 4,
        "validation_overall_accuracy": 0.876,
        "validation_kappa": float("nan"),
        "calibration": {"temperature": 1.3, "ece": 0.021, "brier": 0.15},
    },
    "scenes": ["valley", "hill"],
    "split": {"method": "blocks", "buffer": 4},
    "versions": {"mibf": "0.1.0", "torch": "2.13.0+cpu"},
    "hyperparameters": {"beta": 1e-4, "not a name": 1},
}


def limits(bands: int) -> BandScaling:
    """Return normalization limits that differ by band."""
    low = np.arange(bands, dtype=np.float32)
    return BandScaling(low=low, high=low + 10, fill=low + 3)


def make_bundle(**changes: Any) -> Bundle:
    """Return the untrained bundle of a network; `changes` replace arguments of `Bundle.of_network`."""
    spec = changes.get("spec", SPEC)
    torch.manual_seed(3)
    return Bundle.of_network(
        **{
            "spec": spec,
            "weights": MIBFNet(spec).state_dict(),
            "scaling": {source.name: limits(source.bands) for source in spec.sources},
            "classes": CLASSES,
            "temperature": 1.3,
            "provenance": PROVENANCE,
            "priors": PRIORS,
        }
        | changes
    )


def change_model_json(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """Return the files with changed values in model.json; None removes a key."""
    model = {key: value for key, value in (json.loads(files[MODEL]) | changes).items() if value is not None}
    return files | {MODEL: json.dumps(model).encode()}


def logits(network: MIBFNet) -> torch.Tensor:
    """Return the network's logits for fixed random patches, in float64."""
    generator = torch.Generator().manual_seed(0)
    sources = [torch.rand(6, s.bands, 5 * s.scale, 5 * s.scale, generator=generator) for s in SPEC.sources]
    with torch.inference_mode():
        return network(sources).logits.double()
