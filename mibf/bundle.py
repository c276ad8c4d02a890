"""The bundle: what inference needs and nothing else. Torch, numpy and safetensors; no files.

A bundle becomes two named byte strings and comes back from them; where they are kept is the
caller's affair. Weights are safetensors and the rest is JSON: nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.scaling import Scaling, scaling_from_json, scaling_to_json
from mibf.spec import NetworkSpec

WEIGHTS, MODEL = "weights.safetensors", "model.json"
FORMAT = 2


@dataclass(frozen=True)
class ClassName:
    """One class of the map: its id in rasters, its name and its colour (#rrggbb)."""

    id: int
    name: str
    color: str


@dataclass(frozen=True)
class Bundle:
    """A trained network with its scaling and classes; `provenance` says where it came from.

    `temperature` divides the logits before they become probabilities; it is fitted on validation pixels.
    """

    spec: NetworkSpec
    weights: dict[str, Tensor]
    scaling: Scaling
    classes: tuple[ClassName, ...]
    temperature: float = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)

    def network(self) -> MIBFNet:
        """The network with the bundle's weights, in evaluation mode, on the CPU."""
        network = MIBFNet(self.spec)
        network.load_state_dict(self.weights)
        return network.eval()

    def to_files(self) -> dict[str, bytes]:
        """The bundle as file names and contents."""
        model = {
            "format": FORMAT,
            "network": self.spec.to_json(),
            "scaling": scaling_to_json(self.scaling),
            "classes": [vars(c) for c in self.classes],
            "temperature": self.temperature,
            "provenance": self.provenance,
        }
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()}
        return {
            WEIGHTS: safetensors.torch.save(weights),
            MODEL: (json.dumps(model, indent=1) + "\n").encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Bundle:
        """The bundle that `to_files` wrote.

        Raises:
            InputError: a file is not what its name says, or of a format that this version cannot read.
        """
        try:
            model = json.loads(files[MODEL])
            if model["format"] != FORMAT:
                raise InputError(
                    f"{MODEL} has format {model['format']}, this version reads {FORMAT}; train again or use its version."
                )
            return cls(
                spec=NetworkSpec.from_json(model["network"]),
                weights=safetensors.torch.load(files[WEIGHTS]),
                scaling=scaling_from_json(model["scaling"]),
                classes=tuple(ClassName(**c) for c in model["classes"]),
                temperature=model["temperature"],
                provenance=model["provenance"],
            )
        except (KeyError, ValueError, TypeError, SafetensorError) as error:
            raise InputError(f"the model bundle is damaged ({error!r}); run `mibf train` again.") from error
