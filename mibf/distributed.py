"""What the workers of one training share. Torch alone; where there is one worker, nothing happens."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether this process is one of several workers."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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
