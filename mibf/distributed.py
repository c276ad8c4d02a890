"""Collective operations among the workers of a training run. Torch only; with one worker they do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def workers() -> int:
    """Return the number of workers that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_distributed() -> bool:
    """Return whether this process is one of several workers."""
    return workers() > 1


def average_over_workers(buffers: Iterable[Tensor]) -> None:
    """Replace floating-point buffers by their mean over all workers, in place."""
    if is_distributed():
        for buffer in buffers:
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= dist.get_world_size()


def sum_over_workers(*sums: Tensor) -> None:
    """Replace sums by their total over all workers, in place."""
    if is_distributed():
        for each in sums:
            dist.all_reduce(each)


def decided_by_first(decide: Callable[[], Value], device: torch.device) -> Value:
    """Return the value that the first worker decides on; `decide` is called there alone.

    A decision that each worker made for itself, from a listing or a clock, could differ between workers.
    `device` is the worker's own; the process group may require it.
    """
    if not is_distributed():
        return decide()
    box = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]  # type: ignore[return-value]  # not None: set by the first worker


def all_agree(value: bool, device: torch.device) -> bool:
    """Return whether the value is true on all workers; `device` is the worker's own, as for `decided_by_first`."""
    if not is_distributed():
        return value
    least = torch.tensor(int(value), device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return bool(least)


def unlike_first(value: str) -> list[int]:
    """Return the ranks of the workers whose value differs from that of the first, on every worker the same."""
    if not is_distributed():
        return []
    values = [""] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return [rank for rank, other in enumerate(values) if other != values[0]]


def barrier() -> None:
    """Wait until all workers have reached this point."""
    if is_distributed():
        dist.barrier()


def gather_on_first(*sums: Tensor) -> None:
    """Replace sums by their total on the first worker and by zero on the others, in place: their sum is unchanged."""
    sum_over_workers(*sums)
    if is_distributed() and dist.get_rank() > 0:
        for each in sums:
            each.zero_()
