"""The optimiser and its rate schedule. Torch alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter

#: The cosine ends at this share of the peak rate.
FLOOR = 1e-3


def rate_share(step: int, *, steps: int, warmup: int) -> float:
    """Share of the peak rate at a step: linear from 0 over `warmup` steps, then a half cosine down to `FLOOR`.

    Applied before the step is made: step 0 runs at rate 0, not at the peak.
    """
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimiser(
    parameters: Iterable[Parameter], *, rate: float, weight_decay: float, steps: int, warmup: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW at the peak rate and the schedule that steps with it."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_share(step, steps=steps, warmup=warmup))
    return optimiser, schedule
