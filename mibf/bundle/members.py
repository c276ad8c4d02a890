"""The members of a model: networks, boosted trees, logistic regression. A model is one, or a weighted mean of several.

The probabilities of a model are the mean of its members' probabilities, weighted by their shares (`mibf.ensemble`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from mibf.errors import InputError

#: Largest amount by which shares may fail to sum to 1.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class _ArraysMember:
    """A member that consists of named arrays: its temperature divides its logits, its share is that in the mean."""

    weights: dict[str, Tensor]
    temperature: float = 1.0
    share: float = 1.0

    def content(self) -> bytes:
        """Return the arrays as a safetensors file."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()}
        return bytes(safetensors.torch.save(tensors))

    @property
    def memory_bytes(self) -> int:
        """Size of the arrays in bytes, including a network's batch norm statistics."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.weights.values())


class NetworkMember(_ArraysMember):
    """A network: weights for the bundle's spec."""

    kind = "network"


class LinearMember(_ArraysMember):
    """Logistic regression, by the arrays of `pipeline.classifiers.linear`, on the same features as boosted trees."""

    kind = "linear"


@dataclass(frozen=True)
class TreesMember:
    """Boosted trees in LightGBM's text format, on the features of `pipeline.classifiers.pixel_features`."""

    text: str
    temperature: float = 1.0
    share: float = 1.0

    kind = "trees"

    def content(self) -> bytes:
        """Return the text as a file."""
        return self.text.encode()

    @property
    def memory_bytes(self) -> int:
        """Size of the text in bytes."""
        return len(self.text)


#: Members that classify a pixel by its features.
PixelMember = TreesMember | LinearMember
Member = NetworkMember | PixelMember
#: What each kind of member is called.
KIND_NAMES = {"network": "network", "trees": "boosted trees", "linear": "logistic regression"}
#: The files of each kind of member.
_FILES = {"network": ("weights", "safetensors"), "trees": ("trees", "txt"), "linear": ("linear", "safetensors")}


def file_names(members: Iterable[Member]) -> list[str]:
    """Return the file of each member, such as `weights.safetensors`, `weights-2.safetensors`, `trees.txt`."""
    seen: dict[str, int] = {}
    names = []
    for member in members:
        seen[member.kind] = number = seen.get(member.kind, 0) + 1
        stem, suffix = _FILES[member.kind]
        names.append(f"{stem}.{suffix}" if number == 1 else f"{stem}-{number}.{suffix}")
    return names


def recorded(content: bytes) -> dict[str, Any]:
    """Return what model.json records of a file, to find damage."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def check_members(members: Iterable[Member]) -> None:
    """Check that there are members, and that temperatures and shares are valid.

    Raises:
        InputError: they are not.
    """
    members = list(members)
    if not members:
        raise InputError("a model needs at least one member.")
    for member in members:
        if not _is_positive(member.temperature):
            raise InputError(f"temperature {member.temperature!r} is not a positive number.")
        if not _is_positive(member.share):
            raise InputError(f"share {member.share!r} of a member is not a positive number.")
    if abs(math.fsum(member.share for member in members) - 1) > TOLERANCE:
        listed = ", ".join(f"{member.share:g}" for member in members)
        raise InputError(f"the shares of the members are {listed}; they must sum to 1.")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
