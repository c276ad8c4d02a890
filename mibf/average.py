"""Averaged weights: a moving average of a network over its training's steps. Torch alone.

After Polyak & Juditsky 1992; the exponential form is that of Tarvainen & Valpola 2017, with its slow start.
"""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mibf.network import MIBFNet


class Average:
    """An exponential moving average of a network's weights and buffers, as a network of its own.

    A step's weights count for a share that falls by `decay` with each later step; at first the average is over
    fewer steps, with decay (1 + n) / (10 + n) after n of them, so that the random first weights are soon forgotten.
    """

    def __init__(self, network: MIBFNet, *, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: MIBFNet) -> None:
        """Take the weights after a step in."""
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        moving = [(own, now) for own, now in pairs if own.is_floating_point()]
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # of torch: one kernel for all tensors
        average([own for own, _ in moving], [now.detach() for _, now in moving], 0)
        for own, now in pairs:
            if not own.is_floating_point():  # batch norm's count of batches
                own.copy_(now)
        self.steps += 1


def _tensors(network: MIBFNet) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]
