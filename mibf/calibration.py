"""The temperature that makes confidences honest: what logits are divided by before the softmax. Torch alone.

Guo et al., "On calibration of modern neural networks", ICML 2017: one number, fitted on validation samples by
their likelihood; no class changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mibf.distributed import sum_over_workers

#: Temperatures that are tried: from 1/4 to 8, eight to an octave.
TRIED = 2.0 ** (torch.arange(-16, 25) / 8)


class TemperatureFit:
    """The negative log-likelihood of samples at each temperature, summed batch by batch and over workers.

    No logit is kept, so that validation subsets of any size fit. Between the tried temperatures the minimum is
    that of the parabola through the best one and its neighbours, in log temperature.
    """

    def __init__(self, device: torch.device) -> None:
        self.tried = TRIED.to(device)
        self.sums = torch.zeros(len(TRIED), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take a batch of logits (B, classes) and class positions (B,) in."""
        logits = logits.float()
        losses = [F.cross_entropy(logits / temperature, labels, reduction="sum") for temperature in self.tried]
        self.sums += torch.stack(losses)

    def temperature(self) -> float:
        """The temperature of all samples of all workers; 1 where there was none."""
        sums = self.sums.clone()
        sum_over_workers(sums)
        if not bool(torch.isfinite(sums).all()) or not bool(sums.any()):
            return 1.0
        best = int(sums.argmin())
        place = float(best)
        if 0 < best < len(sums) - 1:
            left, low, right = (float(s) for s in sums[best - 1 : best + 2])
            place += 0.5 * (left - right) / max(left - 2 * low + right, 1e-12)
        return float(TRIED[0] * 2.0 ** (place / 8))
