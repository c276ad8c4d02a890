"""The optimiser and its rate schedule. Torch alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch.nn import Parameter

#: AdamW decays weights apart from the gradient (Loshchilov & Hutter 2019); Adam, as the released code, within it.
Optimiser = Literal["adamw", "adam"]

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
    parameters: Iterable[Parameter],
    *,
    rate: float,
    weight_decay: float,
    steps: int,
    warmup: int,
    optimiser: Optimiser = "adamw",
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimiser at the peak rate and the schedule that steps with it."""
    kinds: dict[Optimiser, type[torch.optim.Adam]] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    made = kinds[optimiser](parameters, lr=rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: rate_share(step, steps=steps, warmup=warmup))
    return made, schedule
