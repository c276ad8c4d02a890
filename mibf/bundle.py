"""The bundle: what inference needs and nothing else. Torch, numpy and safetensors; no files.

A bundle becomes named byte strings and comes back from them; where they are kept is the caller's
affair. Weights are safetensors and the rest is JSON: nothing is unpickled. What is read is whole:
the weights are those that were written, and they fit the network that the JSON tells of.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mibf import mlm
from mibf.card import card
from mibf.discreet import control_character
from mibf.errors import InputError
from mibf.jsonable import without_nan
from mibf.network import MIBFNet
from mibf.priors import Choice, Priors, check_choice
from mibf.scaling import Scaling, scaling_from_json, scaling_to_json
from mibf.spec import NetworkSpec

WEIGHTS, MODEL, CARD = "weights.safetensors", "model.json", "README.md"
FORMAT = 3
#: Format 2 has no priors, and no digest of its weights.
READ = (2, 3)
_COLOR = re.compile("#[0-9a-fA-F]{6}")
#: What can be done about a bundle that is not whole.
REMEDY = "copy the bundle again from where it was made, all files together, or train again"


@dataclass(frozen=True)
class ClassName:
    """One class of the map: its id in rasters, its name and its colour (#rrggbb)."""

    id: int
    name: str
    color: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Its colour as red, green and blue from 0 to 255."""
        red, green, blue = bytes.fromhex(self.color.removeprefix("#"))
        return red, green, blue


@dataclass(frozen=True)
class Bundle:
    """A trained network with its scaling and classes; `provenance` says where it came from.

    `temperature` divides the logits before they become probabilities; it is fitted on validation pixels. `priors` are
    the shares of the classes, None where nobody recorded them: in format 2, and of the authors' checkpoints.
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
        """Numbers that training learns."""
        return sum(p.numel() for p in _blank(self.spec).parameters())

    @property
    def digest(self) -> str:
        """A hash of all that a prediction depends on; where a model comes from and when it was trained is no part of it."""
        model = json.loads(self.to_files()[MODEL])
        told = [model[key] for key in ("network", "scaling", "classes", "temperature", "priors", "weights")]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def source_dropout(self) -> float:
        """The share of training samples that lost one of their sources; 0 where provenance does not tell."""
        told = self.provenance.get("hyperparameters")
        share = told.get("source_dropout") if isinstance(told, dict) else None
        return float(share) if isinstance(share, int | float) and 0 <= share < 1 else 0.0

    @property
    def memory_bytes(self) -> int:
        """Bytes of all weights, those of batch norms' statistics included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.weights.values())

    def network(self, priors: Choice = "trained") -> MIBFNet:
        """The network with the bundle's weights, in evaluation mode, on the CPU.

        Args:
            priors: the shares of the classes that softmax(logits / temperature) answers for; others than those of
                training are brought about in the decoder's bias (see `mibf.priors`).

        Raises:
            InputError: the bundle does not know its priors, or its weights do not fit its spec.
        """
        correction = self._correction(priors)
        check_weights(self.spec, self.weights)
        network = MIBFNet(self.spec)
        network.load_state_dict(self.weights)
        if correction is not None:
            # Logits are divided by the temperature afterwards, the correction of log-probabilities is not.
            network.bottleneck.decoder.bias.data += self.temperature * correction
        return network.eval()

    def _correction(self, priors: Choice) -> Tensor | None:
        check_choice(priors)
        if priors == "trained":
            return None
        if self.priors is None:
            raise InputError(
                f"the shares of the classes that this model was trained on are not known, so that its predictions cannot be "
                f"brought to {priors!r} ones: it was read from a checkpoint of the authors, or is of format 2. "
                "Take priors 'trained', or train again with this version."
            )
        return torch.tensor(self.priors.correction(priors), dtype=torch.float32)

    def to_files(self) -> dict[str, bytes]:
        """The bundle as file names and contents, in the order in which they are to be written: model.json last."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()}
        weights = safetensors.torch.save(tensors)
        model = {
            "format": FORMAT,
            "network": self.spec.to_json(),
            "scaling": scaling_to_json(self.scaling),
            "classes": [vars(c) for c in self.classes],
            "temperature": self.temperature,
            "priors": None if self.priors is None else self.priors.to_json(),
            "provenance": self.provenance,
            "weights": {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)},
            "stac_extensions": list(mlm.EXTENSIONS),
            "properties": mlm.properties(self),
        }
        return {
            WEIGHTS: weights,
            CARD: card(self).encode(),
            MODEL: (json.dumps(without_nan(model), indent=1, allow_nan=False) + "\n").encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Bundle:
        """The bundle that `to_files` wrote, from its weights and model.json.

        Raises:
            InputError: a file is not what its name says, was cut short or exchanged, or is of a format that this
                version cannot read.
        """
        try:
            model = json.loads(files[MODEL])
            if model["format"] not in READ:
                raise InputError(
                    f"{MODEL} has format {model['format']}, this version reads {' and '.join(map(str, READ))}; "
                    "train again or use its version."
                )
            if model["format"] > 2:
                _check_digest(files[WEIGHTS], model["weights"])
            bundle = cls(
                spec=NetworkSpec.from_json(model["network"]),
                weights=safetensors.torch.load(files[WEIGHTS]),
                scaling=scaling_from_json(model["scaling"]),
                classes=tuple(ClassName(**c) for c in model["classes"]),
                temperature=model["temperature"],
                provenance=model["provenance"],
                priors=None if model.get("priors") is None else Priors.from_json(model["priors"]),
            )
            _check(bundle)
        except RecursionError as error:
            raise InputError(f"the model bundle is damaged ({MODEL} is nested without end); {REMEDY}.") from error
        except (KeyError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(f"the model bundle is damaged ({error!r}); {REMEDY}.") from error
        return bundle


def _blank(spec: NetworkSpec) -> MIBFNet:
    """A network that has weights by name, shape and type, and no memory for them."""
    with torch.device("meta"):
        return MIBFNet(spec)


def check_weights(spec: NetworkSpec, weights: Mapping[str, Tensor]) -> None:
    """See that weights are those of the network that a spec tells of: names, shapes and types.

    Raises:
        InputError: they are not; the first that differs is named.
    """
    wanted = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in _blank(spec).state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    for name in (*wanted, *found):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{WEIGHTS} does not fit the network of {MODEL}: {name} is {_told(found.get(name))}, wanted "
                f"{_told(wanted.get(name))}; the two are not of one model: {REMEDY}."
            )


def _told(tensor: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    if tensor is None:
        return "none"
    return f"{' x '.join(map(str, tensor[0])) or 'one'} of {str(tensor[1]).removeprefix('torch.')}"


def _check_digest(weights: bytes, recorded: Mapping[str, Any]) -> None:
    """See that the weights are those that were written with this model.json."""
    found, wanted = hashlib.sha256(weights).hexdigest(), str(recorded["sha256"])
    if found == wanted:
        return
    size = int(recorded["bytes"])
    cause = (
        f"is cut short: {len(weights):,} bytes of {size:,}"
        if len(weights) < size
        else f"is damaged or another model's: {len(weights):,} bytes, {size:,} were written"
    )
    raise InputError(f"{WEIGHTS} {cause}; SHA-256 {found[:12]}..., {MODEL} has {wanted[:12]}...; {REMEDY}.")


def _check(bundle: Bundle) -> None:
    """See that the parts of a bundle are of one model."""
    check_weights(bundle.spec, bundle.weights)
    classes = bundle.spec.classes
    if len(bundle.classes) != classes:
        raise InputError(f"{MODEL} names {len(bundle.classes)} classes, its network has {classes}; {REMEDY}.")
    for c in bundle.classes:
        _check_class(c)
    if bundle.priors is not None and len(bundle.priors.natural) != classes:
        raise InputError(f"{MODEL} has priors of {len(bundle.priors.natural)} classes, its network has {classes}; {REMEDY}.")
    for source in bundle.spec.sources:
        limits = bundle.scaling[source.name]
        if any(values.shape != (source.bands,) for values in (limits.low, limits.high, limits.fill)):
            raise InputError(f"{MODEL}: the scaling of source {source.name!r} is not of its {source.bands} bands; {REMEDY}.")
        if not all(np.isfinite(values).all() for values in (limits.low, limits.high, limits.fill)):
            raise InputError(f"{MODEL}: the scaling of source {source.name!r} has limits that are no numbers; {REMEDY}.")
    ids = [c.id for c in bundle.classes]
    if len(set(ids)) < len(ids) or not all(isinstance(i, int) and 0 <= i <= 255 for i in ids):
        raise InputError(f"{MODEL} has class ids {', '.join(map(str, ids))}; each must be its own, 0 to 255; {REMEDY}.")
    if not isinstance(bundle.provenance, dict):
        raise InputError(f"{MODEL}: its provenance is no object of keys and values; {REMEDY}.")
    temperature = bundle.temperature
    if not isinstance(temperature, int | float) or not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"{MODEL} has temperature {temperature!r}; it must be a positive number; {REMEDY}.")


def _check_class(c: ClassName) -> None:
    """See that a class is fit for rasters, messages and pages: id, name and colour may come from a stranger."""
    fit = type(c.id) is int and 0 <= c.id <= 254
    fit = fit and isinstance(c.name, str) and bool(c.name) and control_character(c.name) is None
    if not (fit and isinstance(c.color, str) and _COLOR.fullmatch(c.color)):
        raise InputError(
            f"{MODEL} has the class {vars(c)!r}; a class has an id from 0 to 254, a name without control characters and a "
            f"colour #rrggbb; {REMEDY}."
        )
