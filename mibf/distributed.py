"""Collective operations among the workers of a training run. Torch only; with one worker they do nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor


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
