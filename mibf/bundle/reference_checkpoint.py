"""Convert reference checkpoints (written by the authors' released code) to our network. Torch and numpy.

The reference network exists in two forms. In the paper, the bottleneck has a hidden layer of 128 units and one logit
per class. In the released code, swapped arguments give the hidden layer one unit per class and the decoder 128 logits,
of which training can only use the first ones. The shapes distinguish the two. Only tensors and plain values are unpickled.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import HIDDEN, NetworkSpec, SourceSpec

#: The paper's patch size, which cannot be inferred from the weights.
PATCH = 7
#: Default source names, as checkpoints contain none: the spectral source, and SAR or LiDAR.
SOURCES = ("first", "second")
#: Reference parameter prefixes and ours. The suffixes (".0.weight", ".1.running_mean") are the same in both.
PARTS = {
    "net1.conv3x3_1": "branches.0.spatial",
    "net1.conv3x3_2": "branches.0.spectral",
    "net1.SELayer.fc": "branches.0.attention.weigh",
    "net1.conv3x3_3": "branches.0.features",
    "net2.conv3x3_1": "branches.1.spatial",
    "net2.conv3x3_2": "branches.1.spectral",
    "net2.SELayer.fc": "branches.1.attention.weigh",
    "net2.conv3x3_3": "branches.1.features",
    "interaction.conv": "relation.gate",
    "interaction.conv3": "relation.join",
    "f1": "refine.0",
    "f2": "refine.1",
    "ff": "join",
    "IB_fusion.encoder.0": "bottleneck.hidden",
    "IB_fusion.fc_mu": "bottleneck.mean",
    "IB_fusion.fc_std": "bottleneck.spread",
    "IB_fusion.decoder": "bottleneck.decoder",
}
#: A layer that the reference network defines but never calls.
UNUSED = "fc."
#: Only in our network: the mean gate is not part of the reference network's state.
GATE = "noise.mean_gate"
#: Keys under which training scripts store the weights in a checkpoint, alongside epoch, optimiser and metrics.
WRAPPERS = ("state_dict", "model", "net")
#: Prefix that data-parallel training adds to every name.
PARALLEL = "module."
#: Types of pickled NumPy numbers, such as a best accuracy stored with the weights; none of them runs code from the file.
NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqefd"),
    (type(np.float64(0)).__reduce__(np.float64(0))[0], "numpy._core.multiarray.scalar"),
    (type(np.float64(0)).__reduce__(np.float64(0))[0], "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote it
]
#: Names or shapes that a message lists before it abbreviates the rest to a count.
LISTED = 6
HOW_TO_SAVE = (
    "Where the authors' code runs and you trust the file, save only the weights: "
    "`torch.save(model.state_dict(), 'weights.pth')`."
)


class Saved(NamedTuple):
    """A checkpoint under our parameter names, with all of its logits."""

    spec: NetworkSpec
    weights: dict[str, Tensor]


def form(spec: NetworkSpec) -> Literal["described", "released"]:
    """Return whether a network's bottleneck is the paper's or the released code's."""
    return "described" if spec.hidden == HIDDEN else "released"


def from_bytes(content: bytes, *, name: str, patch: int = PATCH, sources: tuple[str, str] = SOURCES) -> MIBFNet:
    """Build the network of a checkpoint file, in evaluation mode; see `from_state_dict`.

    Args:
        content: what `torch.save` wrote: the weights, or a mapping that contains them under one of `WRAPPERS`.
        name: file name, for messages.
        patch: patch size in pixels, which cannot be inferred from the weights.
        sources: names of the two sources.

    Raises:
        InputError: the file is damaged, contains more than tensors and plain values, or is not of the reference network.
    """
    try:
        return from_state_dict(_unwrapped(_loaded(content)), patch=patch, sources=sources)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def from_state_dict(state: Mapping[str, Tensor], *, patch: int = PATCH, sources: tuple[str, str] = SOURCES) -> MIBFNet:
    """Build the network from reference weights, in evaluation mode, with one logit per class.

    Bands, widths, number of classes and form of the bottleneck are inferred from the shapes.

    Args:
        state: reference names (with or without the `module.` prefix of data-parallel training) and weights.
        patch: patch size in pixels, which cannot be inferred from the weights.
        sources: names of the two sources.

    Raises:
        InputError: these are not weights of the reference network; the message lists missing or unexpected names, or
            differing shapes.
    """
    return _network(translate(state, patch=patch, sources=sources))


def translate(state: Mapping[str, Tensor], *, patch: int = PATCH, sources: tuple[str, str] = SOURCES) -> Saved:
    """Rename weights to our names, in float32, and derive the spec of the network that holds all of them.

    The released form keeps its 128 logits here, so that it can be compared with the reference network.

    Raises:
        InputError: see `from_state_dict`.
    """
    named = _renamed(_checked(state))
    spec = _spec(named, patch=patch, sources=sources)
    expected = _state(spec)
    differing = [
        f"{_theirs(name)} is {_shape(named[name].shape)}, expected {_shape(shape)}"
        for name, shape in expected.items()
        if tuple(named[name].shape) != shape
    ]
    if differing:
        raise _other_network(_listed(differing, "; "))
    return Saved(spec, named)


def _network(saved: Saved) -> MIBFNet:
    """Build the network without the logits that belong to no class."""
    spec, weights = saved.spec, dict(saved.weights)
    if form(spec) == "released":
        spec = replace(spec, classes=spec.hidden)
        for name in ("bottleneck.decoder.weight", "bottleneck.decoder.bias"):
            weights[name] = weights[name][: spec.classes].clone()
    network = MIBFNet(spec)
    network.load_state_dict(weights)
    return network.eval()


def _loaded(content: bytes) -> Any:
    """Unpickle a file's content without running any code from it.

    Raises:
        InputError: the file is damaged, not a checkpoint, or contains other objects than tensors and plain values.
    """
    try:
        _check_complete(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own warnings about a file that is then rejected
            with torch.serialization.safe_globals(NUMBERS):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any exception
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise InputError(
                f"contains {refused[1]}, which is neither a tensor nor a plain value; reading it would run its code, "
                f"so the file was not read. {HOW_TO_SAVE}"
            ) from error
        raise InputError(
            "is not a checkpoint written by torch.save, or is truncated or damaged; "
            f"pass the complete file, for example checkpoint.pth.tar, or download it again. {HOW_TO_SAVE}"
        ) from error


def _check_complete(content: bytes) -> None:
    """Verify the checksums of a zip archive, as torch.save writes; torch itself does not check them.

    Raises:
        zipfile.BadZipFile: a checksum differs.
    """
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)


def _unwrapped(content: Any) -> Any:
    """Return the weights inside a training script's checkpoint; return anything else unchanged."""
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return content[key]
    return content


def _checked(state: Any) -> dict[str, Tensor]:
    """Return the used weights without the `module.` prefix, on the CPU, in float32, checked to be finite."""
    if not isinstance(state, Mapping):
        raise InputError(
            f"contains a {type(state).__name__} where a mapping of names to weights was expected. {HOW_TO_SAVE}"
        )
    others = [f"{k!r} is a {_kind(v)}" for k, v in state.items() if not (isinstance(k, str) and _is_weight(k, v))]
    if others:
        raise _other_network(f"expected weights, but {_listed(others)}")
    parallel = bool(state) and all(name.startswith(PARALLEL) for name in state)
    names = {name.removeprefix(PARALLEL) if parallel else name: tensor for name, tensor in state.items()}
    weights = {
        name: tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in names.items()
        if not name.startswith(UNUSED)
    }
    infinite = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if infinite:
        raise InputError(
            f"{_listed(infinite)}: some values are not finite; the training that produced them diverged. "
            "Use an earlier checkpoint."
        )
    negative = [name for name, tensor in weights.items() if name.endswith("running_var") and (tensor < 0).any()]
    if negative:
        raise InputError(f"{_listed(negative)}: a variance is negative, so the file is damaged. Download it again.")
    return weights


def _is_weight(name: str, value: Any) -> bool:
    """Return whether a value can be a weight: a dense tensor of real numbers, or batch norm's batch counter."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    return value.is_floating_point() or name.endswith("num_batches_tracked")


def _kind(value: Any) -> str:
    return f"Tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to our names, requiring that none is missing or unexpected."""
    expected = {_theirs(name) for name in _state(NetworkSpec((SourceSpec("a", 1), SourceSpec("b", 1)), classes=2))}
    missing, unknown = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
    if missing or unknown:
        found = [f"missing {_listed(missing)}"] if missing else []
        found += [f"unexpected {_listed(unknown)}"] if unknown else []
        raise _other_network(" and ".join(found))
    return {_ours(name): tensor for name, tensor in weights.items()} | {GATE: torch.full((2,), 0.5)}


def _spec(named: Mapping[str, Tensor], *, patch: int, sources: tuple[str, str]) -> NetworkSpec:
    """Derive the spec from the shapes, counting all of the decoder's logits as classes."""
    specs = []
    for position, source in enumerate(sources):
        first, bands, *_ = _sizes(named, f"branches.{position}.spatial.0.weight", 4)
        second, *_ = _sizes(named, f"branches.{position}.spectral.0.weight", 4)
        specs.append(SourceSpec(source, bands, widths=(first, second)))
    hidden, _ = _sizes(named, "bottleneck.hidden.weight", 2)
    logits, _ = _sizes(named, "bottleneck.decoder.weight", 2)
    if hidden != HIDDEN and (logits != HIDDEN or hidden > logits):
        raise _other_network(
            f"the bottleneck has {hidden} hidden units and {logits} logits; the paper has {HIDDEN} hidden units and one "
            f"logit per class, the released code one hidden unit per class and {HIDDEN} logits"
        )
    return NetworkSpec(tuple(specs), classes=logits, patch=patch, hidden=hidden)


def _sizes(named: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    shape = tuple(named[name].shape)
    if len(shape) != axes or 0 in shape:
        raise _other_network(f"{_theirs(name)} is {_shape(shape)}, expected {axes} axes, none of them empty")
    return shape


def _state(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a network's state except the mean gate, without allocating memory."""
    with torch.device("meta"):
        state = MIBFNet(spec).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name != GATE}


def _ours(theirs: str) -> str:
    part = next(part for part in PARTS if theirs.startswith(f"{part}."))
    return PARTS[part] + theirs.removeprefix(part)


def _theirs(ours: str) -> str:
    part, their = next((part, their) for their, part in PARTS.items() if ours.startswith(f"{part}."))
    return their + ours.removeprefix(part)


def _other_network(found: str) -> InputError:
    return InputError(
        f"these are not the weights of the authors' two-source MIBF-Net: {found}. "
        "Pass an unmodified checkpoint of that network."
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _listed(values: list[str], between: str = ", ") -> str:
    more = len(values) - LISTED
    return between.join(values[:LISTED]) + (f" and {more} more" if more > 0 else "")
