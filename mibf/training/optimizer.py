"""The optimiser and its learning-rate schedule. Torch only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch.nn import Parameter

#: AdamW decouples weight decay from the gradient (Loshchilov & Hutter 2019); Adam, as in the released code, does not.
Optimizer = Literal["adamw", "adam"]
#: The cosine ends at this fraction of the peak learning rate.
FLOOR = 1e-3


def schedule_factor(step: int, *, steps: int, warmup: int) -> float:
    """Fraction of the peak learning rate at a step: linear from 0 over `warmup` steps, then a half cosine down to `FLOOR`.

    It is applied before the step: step 0 runs at learning rate 0, not at the peak.
    """
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(
    parameters: Iterable[Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    steps: int,
    warmup: int,
    optimizer: Optimizer = "adamw",
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Create the optimiser at the peak learning rate and the schedule that steps with it."""
    kinds: dict[Optimizer, type[torch.optim.Adam]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    instance = kinds[optimizer](parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(instance, lambda step: schedule_factor(step, steps=steps, warmup=warmup))
    return instance, schedule
