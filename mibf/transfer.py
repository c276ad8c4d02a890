"""Copies between host and device that a GPU makes while it computes: from and to pinned memory, on a stream of their own.

Torch and numpy only. On a CPU nothing is copied: arrays and tensors share memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class DeviceCopies:
    """Copies arrays to a device. To a GPU they are made on a stream of their own; several threads may share it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    @contextmanager
    def made(self) -> Iterator[Copying]:
        """Make copies in the block, for computations on the stream that is current before it."""
        if self._stream is None:
            yield Copying(self.device)
            return
        copying = Copying(self.device, torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield copying
            copying.end()


class Copying:
    """Copies that are being made; on a GPU they may have only begun when the functions return."""

    def __init__(self, device: torch.device, computing: torch.cuda.Stream | None = None) -> None:
        self._device = device
        self._computing = computing  #: the stream that computes with the copies; None on a CPU
        self._ended: torch.cuda.Event | None = None

    def copy(self, values: NDArray[Any]) -> Tensor:
        """Copy an array to the device, from pinned memory. The array may be dropped at once, but must not be changed."""
        array = torch.from_numpy(values)
        if self._computing is None:
            return array.to(self._device)
        placed = (array if array.is_pinned() else array.pin_memory()).to(self._device, non_blocking=True)
        # Its memory is used for later copies only after what was computed with it until then.
        placed.record_stream(self._computing)
        return placed

    def end(self) -> None:
        """Note on the current stream that all copies have begun."""
        self._ended = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._ended.record()

    def wait(self) -> None:
        """Let what is computed on the current stream from now on wait for the copies; the caller does not wait."""
        if self._ended is not None:
            torch.cuda.current_stream(self._device).wait_event(self._ended)


def to_host(values: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors of one device to the host: those of a GPU into pinned memory, waiting once for all of them."""
    if not any(each.is_cuda for each in values):
        return list(values)
    found = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in values]
    for each, target in zip(values, found, strict=True):
        target.copy_(each, non_blocking=True)
    torch.cuda.current_stream(values[0].device).synchronize()
    return found


def pinned(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return an uninitialized array in pinned memory, from which a GPU copies while it computes; without one, in any."""
    array: NDArray[np.float32] = torch.empty(tuple(shape), pin_memory=torch.cuda.is_available()).numpy()
    return array
