"""The model bundle: everything that inference needs. Torch, numpy and safetensors; no file access.

A bundle is converted to named byte strings and back; the caller stores them. Weights are safetensors, boosted trees are
text and the rest is JSON, so nothing is unpickled. Reading verifies the bundle: the members are those that were written, and
networks fit the spec that the JSON describes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mibf.bundle.classes import ClassName
from mibf.bundle.members import (
    KIND_NAMES,
    LinearMember,
    Member,
    NetworkMember,
    PixelMember,
    TreesMember,
    file_names,
    recorded,
)
from mibf.class_priors import Priors, PriorSetting, check_choice
from mibf.errors import InputError
from mibf.metrics.prediction_sets import PredictionSets
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NetworkSpec
from mibf.normalization import Scaling, scaling_to_json
from mibf.serialization import without_nan

WEIGHTS, MODEL, CARD = "weights.safetensors", "model.json", "README.md"
#: Remedy for an incomplete or damaged bundle.
REMEDY = "copy all files of the bundle again from where it was written, or retrain"


@dataclass(frozen=True)
class Bundle:
    """A trained model with its normalization and classes; `provenance` records where it came from.

    `spec` describes the inputs, classes and patch of all members, and the layers of those that are networks. Each member's
    temperature divides its logits before the softmax. `priors` are the class priors, None where they were not recorded: in
    format 2 and for reference checkpoints. `prediction_sets` are their thresholds, None without validation pixels and in
    models of earlier versions; no other prediction depends on them.
    """

    spec: NetworkSpec
    members: tuple[Member, ...]
    scaling: Scaling
    classes: tuple[ClassName, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    priors: Priors | None = None
    prediction_sets: PredictionSets | None = None

    @classmethod
    def of_network(
        cls,
        spec: NetworkSpec,
        weights: dict[str, Tensor],
        scaling: Scaling,
        classes: tuple[ClassName, ...],
        *,
        temperature: float = 1.0,
        provenance: dict[str, Any] | None = None,
        priors: Priors | None = None,
    ) -> Bundle:
        """Create the bundle of a single network."""
        return cls(spec, (NetworkMember(weights, temperature),), scaling, classes, provenance or {}, priors)

    @property
    def networks(self) -> tuple[NetworkMember, ...]:
        """The members that are networks."""
        return tuple(member for member in self.members if isinstance(member, NetworkMember))

    @property
    def trees(self) -> tuple[TreesMember, ...]:
        """The members that are boosted trees."""
        return tuple(member for member in self.members if isinstance(member, TreesMember))

    @property
    def linear(self) -> tuple[LinearMember, ...]:
        """The members that are logistic regressions."""
        return tuple(member for member in self.members if isinstance(member, LinearMember))

    @property
    def pixelwise(self) -> tuple[PixelMember, ...]:
        """The members that classify a pixel by its features, in the order of the members."""
        return tuple(member for member in self.members if isinstance(member, PixelMember))

    @property
    def single(self) -> NetworkMember | None:
        """The network of a model that is a single network; None for other models."""
        first = self.members[0]
        return first if len(self.members) == 1 and isinstance(first, NetworkMember) else None

    @property
    def method(self) -> str:
        """What the model is called: by its networks, without any by its first member."""
        return "MIBF-Net" if self.networks else KIND_NAMES[self.members[0].kind].capitalize()

    @property
    def parameters(self) -> int:
        """Number of trainable parameters of all networks."""
        return len(self.networks) * sum(p.numel() for p in _blank(self.spec).parameters()) if self.networks else 0

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
    def band_names(self) -> dict[str, tuple[str, ...]]:
        """The names of the bands of each source that had names in training, by source, as provenance records them."""
        recorded = self.provenance.get("band_names")
        if not isinstance(recorded, dict):
            return {}
        return {str(source): tuple(map(str, names)) for source, names in recorded.items() if isinstance(names, list)}

    @property
    def memory_bytes(self) -> int:
        """Size of all members in bytes."""
        return sum(member.memory_bytes for member in self.members)

    def network(self, priors: PriorSetting = "trained", *, position: int = 0) -> MIBFNet:
        """Build a network with its member's weights, in evaluation mode, on the CPU.

        Args:
            priors: the class priors that the logits reflect; the correction of priors other than those of training is
                added to the decoder's bias, so the temperature divides it too (see `mibf.class_priors`).
            position: which of the networks.

        Raises:
            InputError: the bundle does not record its priors, or its weights do not fit its spec.
        """
        correction = self.correction(priors)
        weights = self.networks[position].weights
        check_weights(self.spec, weights)
        network = MIBFNet(self.spec)
        network.load_state_dict(weights)
        if correction is not None:
            network.bottleneck.decoder.bias.data += correction
        return network.eval()

    def correction(self, priors: PriorSetting) -> Tensor | None:
        """Return what to add to every member's logits for these class priors, (classes,); None for those of training.

        Raises:
            InputError: the bundle does not record its priors.
        """
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
        """Return everything that predictions depend on as JSON; the members by size and SHA-256."""
        common = {
            "network": self.spec.to_json(),
            "scaling": scaling_to_json(self.scaling),
            "classes": [vars(c) for c in self.classes],
        }
        priors = None if self.priors is None else self.priors.to_json()
        if self.single is not None:
            single = {"temperature": self.single.temperature, "priors": priors, "weights": recorded(self.single.content())}
            return common | single
        members = [
            {"kind": m.kind, "file": name, **recorded(m.content()), "temperature": m.temperature, "share": m.share}
            for m, name in zip(self.members, file_names(self.members), strict=True)
        ]
        return common | {"priors": priors, "members": members}


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
