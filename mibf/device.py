"""Device and numeric precision of a computation. Torch only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, TypeVar

import torch
from torch import nn

from mibf.errors import InputError

#: float32 throughout, or bfloat16 or float16 where autocast considers it safe (weights and sums stay float32).
Precision = Literal["float32", "bf16", "fp16"]
#: Dtype of the convolutions at inference, by precision.
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Module = TypeVar("Module", bound=nn.Module)


#: Texts of torch's errors after which a process can no longer use its device, and of out-of-memory errors without a class.
_FAILED = (
    "CUDA error",
    "HIP error",
    "device-side assert",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")


def means_no_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on the device or the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in str(error) for part in _NO_MEMORY)


def means_device_failed(error: BaseException) -> bool:
    """Return whether an error says that the device failed: every later call of this process on it fails too."""
    return isinstance(error, RuntimeError) and not means_no_memory(error) and any(part in str(error) for part in _FAILED)


def best_device() -> torch.device:
    """Return the first CUDA device if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def missing_gpu() -> str:
    """Say why torch finds no GPU here: the build of torch, or the driver."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this build of torch computes on CPUs only"
    return f"torch is a build for CUDA {torch.version.cuda or torch.version.hip} and finds no driver for it, or no GPU"


def to_device(network: Module, device: torch.device) -> Module:
    """Move a network to a device, with its weights channels last: the fastest layout for convolutions."""
    placed: Module = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return placed


def check_precision(device: torch.device, precision: Precision, *, key: str = "train.precision") -> None:
    """Check that a device supports a precision.

    Args:
        device: the device.
        precision: the precision.
        key: the key of the configuration that asks for it.

    Raises:
        InputError: it does not, and the message names one that it supports; or this build of torch does not support it.
    """
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"{key} is fp16, which needs a GPU, and none was found ({missing_gpu()}); use bf16 or float32.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise InputError(f"{key} is bf16, which {name} does not support; use fp16 or float32.")
    if device.type == "cuda":
        _check_architecture(device)


def _check_architecture(device: torch.device) -> None:
    """Check that torch has code for a GPU: binaries for its major version up to its minor one, or any older PTX code.

    Raises:
        InputError: it has none.
    """
    built = [re.match(r"(sm|compute)_(\d+)", name) for name in torch.cuda.get_arch_list()]
    found = [(each[1], int(each[2])) for each in built if each]
    if not found:
        return  # another maker's GPU
    major, minor = torch.cuda.get_device_capability(device)
    own = 10 * major + minor
    if not any(number <= own and (kind == "compute" or number // 10 == major) for kind, number in found):
        listed = ", ".join(f"{number // 10}.{number % 10}" for _, number in found)
        raise InputError(
            f"{torch.cuda.get_device_name(device)} has the compute capability {major}.{minor}, for which this torch "
            f"(CUDA {torch.version.cuda}) has no code; it is for {listed}. Install a build for it, or compute on "
            "CPUs (resources.gpus: false)."
        )


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a forward pass of this precision runs."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


@contextmanager
def ieee_float32(device: torch.device, *, deterministic: bool = False) -> Iterator[None]:
    """Return a context in which float32 convolutions and matrix products on a GPU keep all 24 bits.

    With TF32, cuDNN's default, they round their inputs to 11 bits; NVIDIA's images set it for matrix products too. The flags
    are the process's, so the backward pass, which runs in a thread of its own, has to be within the context.

    With `deterministic` convolutions also give the same result every time, whatever the process has set: no algorithm is
    chosen by its speed, or adds up in an order that varies.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    matrix_products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        benchmark = cudnn.benchmark and not deterministic
        same_result = cudnn.deterministic or deterministic
        with cudnn.flags(enabled=True, benchmark=benchmark, deterministic=same_result, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matrix_products)
