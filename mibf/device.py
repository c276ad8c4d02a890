"""Device and numeric precision of a computation. Torch only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, TypeVar

import torch
from torch import nn

from mibf.errors import InputError

#: float32 throughout, or bfloat16 or float16 where autocast considers it safe (weights and sums stay float32).
Precision = Literal["float32", "bf16", "fp16"]
#: Dtype of the convolutions at inference, by precision.
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
Module = TypeVar("Module", bound=nn.Module)


def best_device() -> torch.device:
    """Return the first CUDA device if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(network: Module, device: torch.device) -> Module:
    """Move a network to a device, with its weights channels last: the fastest layout for convolutions."""
    placed: Module = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return placed


def check_precision(device: torch.device, precision: Precision) -> None:
    """Check that a device supports a precision.

    Raises:
        InputError: it does not; the message names one that it supports.
    """
    if precision == "fp16" and device.type != "cuda":
        raise InputError("train.precision is fp16, which needs a GPU, and none was found; use bf16 or float32.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise InputError(f"train.precision is bf16, which {name} does not support; use fp16 or float32.")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a forward pass of this precision runs."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


@contextmanager
def ieee_float32(device: torch.device) -> Iterator[None]:
    """Return a context in which float32 convolutions and matrix products on a GPU keep all 24 bits.

    With TF32, cuDNN's default, they round their inputs to 11 bits; NVIDIA's images set it for matrix products too. The flags
    are the process's, so the backward pass, which runs in a thread of its own, has to be within the context.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    matrix_products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matrix_products)
