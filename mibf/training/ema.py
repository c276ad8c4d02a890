"""Exponential moving average (EMA) of a network's weights over training steps. Torch only.

After Polyak & Juditsky 1992; the exponential form with its warm-up is that of Tarvainen & Valpola 2017.

Of torch's `swa_utils` the averaging kernel is used, not `AveragedModel`. With this warm-up as its averaging function, and
its counter started at 1, `AveragedModel` gives the same values bit for bit, but an update takes 1.3 times as long on a CPU
(benchmarks/moving_average.py), and on a GPU it copies its counter to the device at every step, for which the host waits.
"""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mibf.network.mibfnet import MIBFNet


class ExponentialMovingAverage:
    """An exponential moving average of a network's weights and buffers, held as a separate network.

    The contribution of a step's weights shrinks by a factor of `decay` with each later step. At first the average
    covers fewer steps: after n of them the decay is (1 + n) / (10 + n), until that exceeds `decay`, so that the random
    initial weights are soon forgotten.
    """

    def __init__(self, network: MIBFNet, *, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: MIBFNet) -> None:
        """Update the average with the weights after a step."""
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        moving = [(own, now) for own, now in pairs if own.is_floating_point()]
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch's own: one kernel for all tensors
        average([own for own, _ in moving], [now.detach() for _, now in moving], 0)
        counted = [(own, now) for own, now in pairs if not own.is_floating_point()]  # batch norm's batch counters
        torch._foreach_copy_([own for own, _ in counted], [now for _, now in counted])
        self.steps += 1


def _tensors(network: MIBFNet) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]
