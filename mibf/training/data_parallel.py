"""Data-parallel training: the gradient of a step averaged over the workers by one `all_reduce`. Torch only.

Each worker first computes the whole gradient of its own network, by a CUDA graph, in several pieces, or operation by
operation. Workers meet only in the average, which always has the same bytes, so none waits for another one that computed
in a different way. `DistributedDataParallel` sends parts of the gradient while others are still computed, by hooks in the
backward pass, which a CUDA graph has no room for; this network's gradient, of a megabyte, is one part.

With one worker nothing is sent.
"""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mibf.distributed import unlike_first
from mibf.errors import InputError


class GradientAverage:
    """Averages the gradient of a network over all workers, in place; all of them must call it equally often.

    Each gradient is multiplied by 1 / workers, then all are added, as `DistributedDataParallel` does: with two workers the
    result has the same bits. The loss of a worker with more samples than others has to be weighted by its share.

    Raises:
        InputError: the workers' networks do not have the same weights and buffers.
    """

    def __init__(self, network: nn.Module) -> None:
        check_same_state(network)
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        size = sum(p.numel() for p in self._parameters)
        self._buffer = torch.zeros(size, dtype=self._parameters[0].dtype, device=self._parameters[0].device)
        self._views, start = list[Tensor](), 0
        for parameter in self._parameters:
            # In the layout of the parameter, which the fused optimiser requires.
            self._views.append(self._buffer.as_strided(parameter.shape, parameter.stride(), start))
            start += parameter.numel()

    @torch.no_grad()
    def __call__(self) -> None:
        """Replace the gradient of every parameter by its average; the next call overwrites it."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if len(gradients) != len(self._parameters):
            raise RuntimeError("a parameter of the network has no gradient to average")
        torch._foreach_copy_(self._views, gradients)
        self._buffer.mul_(1 / dist.get_world_size())
        dist.all_reduce(self._buffer)
        for parameter, average in zip(self._parameters, self._views, strict=True):
            parameter.grad = average


def check_same_state(network: nn.Module) -> None:
    """Check that the network of every worker has the weights and buffers of the first.

    Raises:
        InputError: it does not, on every worker.
    """
    found = hashlib.sha256()
    for values in (*network.parameters(), *network.buffers()):
        found.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    others = unlike_first(found.hexdigest())
    if others:
        raise InputError(
            f"the network of worker {', '.join(map(str, others))} does not start with the weights of worker 0; all workers "
            "must have the same seed, the same checkpoint, and the same versions of mibf and torch."
        )
