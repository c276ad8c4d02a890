"""The model bundle: everything that inference needs. Torch, numpy and safetensors; no file access.

A bundle is converted to named byte strings and back; the caller stores them. Weights are safetensors and the rest is
JSON, so nothing is unpickled. Reading verifies the bundle: the weights are those that were written, and they fit the
network that the JSON describes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mibf.bundle.classes import ClassName
from mibf.class_priors import Priors, PriorSetting, check_choice
from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NetworkSpec
from mibf.normalization import Scaling, scaling_to_json
from mibf.serialization import without_nan

WEIGHTS, MODEL, CARD = "weights.safetensors", "model.json", "README.md"
#: Remedy for an incomplete or damaged bundle.
REMEDY = "copy all files of the bundle again from where it was written, or retrain"


@dataclass(frozen=True)
class Bundle:
    """A trained network with its normalization and classes; `provenance` records where it came from.

    `temperature` divides the logits before the softmax; it is fitted on validation pixels. `priors` are the class
    priors, None where they were not recorded: in format 2 and for reference checkpoints.
    """

    spec: NetworkSpec
    weights: dict[str, Tensor]
    scaling: Scaling
    classes: tuple[ClassName, ...]
    temperature: float = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)
    priors: Priors | None = None

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in _blank(self.spec).parameters())

    @property
    def digest(self) -> str:
        """Hash of everything that a prediction depends on, excluding where the model comes from and when it was trained."""
        values = list(without_nan(self.to_json()).values())
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def source_dropout(self) -> float:
        """Fraction of training samples that had one of their sources dropped; 0 if provenance does not record it."""
        recorded = self.provenance.get("hyperparameters")
        share = recorded.get("source_dropout") if isinstance(recorded, dict) else None
        return float(share) if isinstance(share, int | float) and 0 <= share < 1 else 0.0

    @property
    def memory_bytes(self) -> int:
        """Size of all weights in bytes, including batch norm statistics."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.weights.values())

    def network(self, priors: PriorSetting = "trained") -> MIBFNet:
        """Build the network with the bundle's weights, in evaluation mode, on the CPU.

        Args:
            priors: the class priors that the logits reflect; the correction of priors other than those of training is
                added to the decoder's bias, so the temperature divides it too (see `mibf.class_priors`).

        Raises:
            InputError: the bundle does not record its priors, or its weights do not fit its spec.
        """
        correction = self._correction(priors)
        check_weights(self.spec, self.weights)
        network = MIBFNet(self.spec)
        network.load_state_dict(self.weights)
        if correction is not None:
            network.bottleneck.decoder.bias.data += correction
        return network.eval()

    def _correction(self, priors: PriorSetting) -> Tensor | None:
        check_choice(priors)
        if priors == "trained":
            return None
        if self.priors is None:
            raise InputError(
                f"the class priors that this model was trained with are unknown, so its predictions cannot be corrected to "
                f"{priors!r} priors: it was converted from a reference checkpoint or has format 2. "
                "Use priors 'trained', or retrain with this version."
            )
        return torch.tensor(self.priors.correction(priors), dtype=torch.float32)

    def to_json(self) -> dict[str, Any]:
        """Return everything that predictions depend on as JSON; the weights by size and SHA-256."""
        weights = self.weight_bytes()
        return {
            "network": self.spec.to_json(),
            "scaling": scaling_to_json(self.scaling),
            "classes": [vars(c) for c in self.classes],
            "temperature": self.temperature,
            "priors": None if self.priors is None else self.priors.to_json(),
            "weights": {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)},
        }

    def weight_bytes(self) -> bytes:
        """Return the weights as a safetensors file."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()}
        return bytes(safetensors.torch.save(tensors))


def _blank(spec: NetworkSpec) -> MIBFNet:
    """Build a network whose weights have names, shapes and dtypes but no memory."""
    with torch.device("meta"):
        return MIBFNet(spec)


def check_weights(spec: NetworkSpec, weights: Mapping[str, Tensor]) -> None:
    """Check that weights match the network of a spec: names, shapes and dtypes.

    Raises:
        InputError: they do not; the message names the first difference.
    """
    wanted = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _blank(spec).state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    for name in (*wanted, *found):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{WEIGHTS} does not fit the network of {MODEL}: {name}: found {_describe_tensor(found.get(name))}, "
                f"expected {_describe_tensor(wanted.get(name))}; the two files belong to different models: {REMEDY}."
            )


def _describe_tensor(tensor: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    if tensor is None:
        return "none"
    return f"{' x '.join(map(str, tensor[0])) or 'one'} ({str(tensor[1]).removeprefix('torch.')})"
