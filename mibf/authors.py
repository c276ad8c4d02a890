"""The authors' checkpoints: their parameter names and shapes to our network. Torch alone.

Two forms of their network are about. As the paper describes it, the bottleneck has a hidden layer of 128 and one
logit a class. As released, swapped arguments make the hidden layer as wide as the classes and give 128 logits, of
which training could only ever use the first ones. Shapes tell the two apart. Nothing is unpickled but tensors.
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
from mibf.network import MIBFNet
from mibf.spec import HIDDEN, NetworkSpec, SourceSpec

#: The paper's side of a patch; weights do not tell it.
PATCH = 7
#: Names for the sources of a network whose file names none: the spectral one, and SAR or LiDAR.
SOURCES = ("first", "second")

#: What their names begin with, and ours. What follows (".0.weight", ".1.running_mean") is the same in both.
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
#: A layer that their network holds and never calls.
UNUSED = "fc."
#: Ours alone: in their network the mean gate is no part of the state.
GATE = "noise.mean_gate"
#: Where training scripts put the weights in a checkpoint, beside epoch, optimiser and figures.
WRAPPERS = ("state_dict", "model", "net")
#: What data-parallel training puts before every name.
PARALLEL = "module."
#: What NumPy's numbers are made of, such as a best accuracy kept beside the weights; none of it runs code of the file.
NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqefd"),
    (type(np.float64(0)).__reduce__(np.float64(0))[0], "numpy._core.multiarray.scalar"),
    (type(np.float64(0)).__reduce__(np.float64(0))[0], "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote it
]
#: Names and shapes that a message lists before it says how many more there are.
LISTED = 6

HOW_TO_SAVE = (
    "Where the authors' code runs and you trust the file, save the weights alone: "
    "`torch.save(model.state_dict(), 'weights.pth')`."
)


class Saved(NamedTuple):
    """A checkpoint under our names, none of its logits dropped."""

    spec: NetworkSpec
    weights: dict[str, Tensor]


def form(spec: NetworkSpec) -> Literal["described", "released"]:
    """Whether a network's bottleneck is the paper's, or that of the released code."""
    return "described" if spec.hidden == HIDDEN else "released"


def from_bytes(content: bytes, *, name: str, patch: int = PATCH, sources: tuple[str, str] = SOURCES) -> MIBFNet:
    """The network of a checkpoint file, in evaluation mode; as `from_state_dict` otherwise.

    Args:
        content: what `torch.save` wrote: the weights, or a mapping with them under one of `WRAPPERS`.
        name: the file's name, for messages.
        patch: side of a patch in pixels, which weights do not tell.
        sources: what to call the two sources.

    Raises:
        InputError: it is damaged, holds more than tensors and plain values, or is not the authors' network.
    """
    try:
        return from_state_dict(_unwrapped(_loaded(content)), patch=patch, sources=sources)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def from_state_dict(state: Mapping[str, Tensor], *, patch: int = PATCH, sources: tuple[str, str] = SOURCES) -> MIBFNet:
    """The network of the authors' weights, in evaluation mode; its logits are those of the classes alone.

    Bands, widths, classes and the form of the bottleneck are read from the shapes.

    Args:
        state: their names (with or without data-parallel training's `module.`) and weights.
        patch: side of a patch in pixels, which weights do not tell.
        sources: what to call the two sources.

    Raises:
        InputError: these are not the weights of their network; says what is missing, unknown or of another shape.
    """
    return _network(translate(state, patch=patch, sources=sources))


def translate(state: Mapping[str, Tensor], *, patch: int = PATCH, sources: tuple[str, str] = SOURCES) -> Saved:
    """Weights under our names, in float32, and the spec of the network that holds all of them.

    The released form keeps its 128 logits here, so that it can be compared with their network.

    Raises:
        InputError: as `from_state_dict`.
    """
    named = _renamed(_checked(state))
    spec = _spec(named, patch=patch, sources=sources)
    expected = _state(spec)
    differing = [
        f"{_theirs(name)} is {_shape(named[name].shape)} where {_shape(shape)} was expected"
        for name, shape in expected.items()
        if tuple(named[name].shape) != shape
    ]
    if differing:
        raise _other_network(_listed(differing, "; "))
    return Saved(spec, named)


def _network(saved: Saved) -> MIBFNet:
    """The network without the logits that belong to no class."""
    spec, weights = saved.spec, dict(saved.weights)
    if form(spec) == "released":
        spec = replace(spec, classes=spec.hidden)
        for name in ("bottleneck.decoder.weight", "bottleneck.decoder.bias"):
            weights[name] = weights[name][: spec.classes].clone()
    network = MIBFNet(spec)
    network.load_state_dict(weights)
    return network.eval()


def _loaded(content: bytes) -> Any:
    """What a file holds; nothing in it is run.

    Raises:
        InputError: the file is damaged, no checkpoint, or holds other objects than tensors and plain values.
    """
    try:
        _check_whole(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own remarks on a file that is then refused
            with torch.serialization.safe_globals(NUMBERS):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises is of any kind
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise InputError(
                f"holds {refused[1]}, which is neither a tensor nor a plain value, and whose code would be run to read it; "
                f"it is not read. {HOW_TO_SAVE}"
            ) from error
        raise InputError(
            "is not a checkpoint that torch.save wrote, or is cut short or damaged; "
            f"give the whole file, for example checkpoint.pth.tar, or fetch it again. {HOW_TO_SAVE}"
        ) from error


def _check_whole(content: bytes) -> None:
    """See that no byte of a zip archive, as torch.save writes, is another than was written; torch itself does not look.

    Raises:
        zipfile.BadZipFile: a checksum differs.
    """
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)


def _unwrapped(content: Any) -> Any:
    """The weights out of a training script's checkpoint; anything else as it is."""
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return content[key]
    return content


def _checked(state: Any) -> dict[str, Tensor]:
    """The used weights under their names without `module.`, on the CPU, in float32 and finite."""
    if not isinstance(state, Mapping):
        raise InputError(f"holds a {type(state).__name__} where a mapping of names to weights was expected. {HOW_TO_SAVE}")
    others = [f"{k!r} is a {_kind(v)}" for k, v in state.items() if not (isinstance(k, str) and _is_weight(k, v))]
    if others:
        raise _other_network(f"weights were expected, and {_listed(others)}")
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
            f"{_listed(infinite)}: not all values are finite; the training that made them went astray. "
            "Take an earlier checkpoint."
        )
    negative = [name for name, tensor in weights.items() if name.endswith("running_var") and (tensor < 0).any()]
    if negative:
        raise InputError(f"{_listed(negative)}: a variance is negative; the file is damaged. Fetch it again.")
    return weights


def _is_weight(name: str, value: Any) -> bool:
    """Whether a value can be a weight: a plain tensor of real numbers, or batch norm's count of batches."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    return value.is_floating_point() or name.endswith("num_batches_tracked")


def _kind(value: Any) -> str:
    return f"Tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by our names, all of them there and none besides."""
    expected = {_theirs(name) for name in _state(NetworkSpec((SourceSpec("a", 1), SourceSpec("b", 1)), classes=2))}
    missing, unknown = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
    if missing or unknown:
        found = [f"without {_listed(missing)}"] if missing else []
        found += [f"with {_listed(unknown)}, which that has not"] if unknown else []
        raise _other_network(" and ".join(found))
    return {_ours(name): tensor for name, tensor in weights.items()} | {GATE: torch.full((2,), 0.5)}


def _spec(named: Mapping[str, Tensor], *, patch: int, sources: tuple[str, str]) -> NetworkSpec:
    """The spec that the shapes tell, all of the decoder's logits counted as classes."""
    specs = []
    for position, source in enumerate(sources):
        first, bands, *_ = _sizes(named, f"branches.{position}.spatial.0.weight", 4)
        second, *_ = _sizes(named, f"branches.{position}.spectral.0.weight", 4)
        specs.append(SourceSpec(source, bands, widths=(first, second)))
    hidden, _ = _sizes(named, "bottleneck.hidden.weight", 2)
    logits, _ = _sizes(named, "bottleneck.decoder.weight", 2)
    if hidden != HIDDEN and (logits != HIDDEN or hidden > logits):
        raise _other_network(
            f"a bottleneck with a hidden layer of {hidden} and {logits} logits, where the paper has {HIDDEN} and one logit "
            f"a class, and the released code one hidden unit a class and {HIDDEN} logits"
        )
    return NetworkSpec(tuple(specs), classes=logits, patch=patch, hidden=hidden)


def _sizes(named: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    shape = tuple(named[name].shape)
    if len(shape) != axes or 0 in shape:
        raise _other_network(f"{_theirs(name)} is {_shape(shape)} where {axes} axes, none of them empty, were expected")
    return shape


def _state(spec: NetworkSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's state but for the mean gate; no memory is taken for it."""
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
        f"these are not the weights of the authors' MIBF-Net of two sources: {found}. "
        "Give a checkpoint of their network, unchanged."
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _listed(values: list[str], between: str = ", ") -> str:
    more = len(values) - LISTED
    return between.join(values[:LISTED]) + (f" and {more} more" if more > 0 else "")
