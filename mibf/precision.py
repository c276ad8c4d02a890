"""Which device and arithmetic a computation runs in. Torch alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import nn

#: float32 throughout, or bfloat16 where autocast deems it safe (weights and sums stay float32).
Precision = Literal["float32", "bf16"]

#: What convolutions of a precision compute in.
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}

Module = TypeVar("Module", bound=nn.Module)


def best_device() -> torch.device:
    """The first CUDA device where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(network: Module, device: torch.device) -> Module:
    """The network on a device, its weights channels last: the layout in which convolutions are fastest."""
    placed: Module = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return placed


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a forward pass of this precision runs."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def ieee_float32(device: torch.device) -> AbstractContextManager[object]:
    """The context in which float32 convolutions on a GPU keep all 24 bits; cuDNN rounds inputs to 11 by default (TF32)."""
    if device.type != "cuda":
        return nullcontext()
    cudnn = torch.backends.cudnn
    return cudnn.flags(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)
