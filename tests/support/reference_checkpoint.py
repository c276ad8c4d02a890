"""Checkpoints as the authors' reference code writes them."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec

#: Names of our layers and of the reference code, written independently of the module under test.
LAYERS = [
    *(
        (f"branches.{i}.{ours}", f"net{i + 1}.{theirs}")
        for i in (0, 1)
        for ours, theirs in (
            ("spatial.", "conv3x3_1."),
            ("spectral.", "conv3x3_2."),
            ("features.", "conv3x3_3."),
            ("attention.weigh.", "SELayer.fc."),
        )
    ),
    ("relation.gate.", "interaction.conv."),
    ("relation.join.", "interaction.conv3."),
    ("refine.0.", "f1."),
    ("refine.1.", "f2."),
    ("join.", "ff."),
    ("bottleneck.hidden.", "IB_fusion.encoder.0."),
    ("bottleneck.mean.", "IB_fusion.fc_mu."),
    ("bottleneck.spread.", "IB_fusion.fc_std."),
    ("bottleneck.decoder.", "IB_fusion.decoder."),
]

State = dict[str, Tensor]


def reference_name(name: str) -> str:
    """Return the reference code's name of one of our parameters or buffers."""
    part, reference = next((part, reference) for part, reference in LAYERS if name.startswith(part))
    return reference + name.removeprefix(part)


def network_of(bands: tuple[int, int] = (3, 1), *, classes: int = 3, hidden: int = 128, patch: int = 5) -> MIBFNet:
    """Return a network with distinct values in every parameter and statistic, to detect swapped tensors."""
    torch.manual_seed(3)
    spec = NetworkSpec((SourceSpec("a", bands[0]), SourceSpec("b", bands[1], NARROW)), classes, patch, hidden)
    network = MIBFNet(spec)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * (torch.rand_like(tensor) - 0.5))
    network.noise.mean_gate.fill_(0.5)
    return network.eval()


def reference_state(network: MIBFNet) -> State:
    """Return a network's state as the authors' code saves it, including the layer that it never calls."""
    state = {reference_name(name): t.clone() for name, t in network.state_dict().items() if name != "noise.mean_gate"}
    return state | {"fc.0.weight": torch.rand(network.spec.classes, 128), "fc.0.bias": torch.rand(network.spec.classes)}


def saved(content: Any) -> bytes:
    """Return the bytes that `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
