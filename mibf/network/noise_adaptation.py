"""Noise adaptation: add noise to the dominant source's features in training, so that the others are learnt too.

The paper's attribution-driven noise adaptation layer. Torch only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Fraction of a batch's rows that receive noise.
SHARE = 0.7


class NoiseAdaptation(nn.Module):
    """Adds noise to one source's features; sources are chosen with probability equal to their mean gate of the last step.

    Intended differences from the released code: rows are sampled without replacement, so that exactly `SHARE` of them
    receive noise; the noise has the standard deviation of each feature channel, not one; the mean gate is a buffer (saved
    with the model, detached from the graph), is updated in training only, and is averaged over workers by the training
    step.
    """

    mean_gate: Tensor

    def __init__(self, sources: int) -> None:
        super().__init__()
        self.register_buffer("mean_gate", torch.full((sources,), 1.0 / sources))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the features, (B, 64, q, q) per source, with noise on one of them; in evaluation, unchanged."""
        if not self.training:
            return list(features)
        first = features[0]
        batch = first.shape[0]
        # Only tensors, no Python numbers: the choice does not wait for a GPU.
        chosen = torch.multinomial(self.mean_gate, 1)  # (1,)
        rows = torch.randperm(batch, device=first.device) < round(SHARE * batch)  # (B,)
        # Sampled in the features' own layout, channels last: sampling into another layout takes ten times as long.
        drawn = torch.randn(batch, *first.shape[2:], first.shape[1], device=first.device)
        noise = drawn.permute(0, 3, 1, 2) * rows[:, None, None, None]
        disturbed = []
        for position, feature in enumerate(features):
            scale = _deviation(feature.detach()) * (chosen == position)  # (64,)
            disturbed.append(feature + (noise * scale[:, None, None]).to(feature.dtype))
        return disturbed

    @torch.no_grad()
    def observe(self, gate: Tensor) -> None:
        """Store the mean gate of this step, from the gates (B, sources) of its patches.

        A mean that is not finite is ignored: the training step reports it, and it could not be sampled from.
        """
        mean = gate.detach().float().mean(dim=0)
        self.mean_gate.copy_(torch.where(torch.isfinite(mean).all(), mean, self.mean_gate))


def _deviation(features: Tensor) -> Tensor:
    """Standard deviation of each channel over batch and pixels, (B, C, q, q) -> (C,), from its moments."""
    values = features.permute(0, 2, 3, 1).flatten(0, 2).float()
    values = values - values[:1]  # near zero, so that squares lose no digits
    return (values.square().mean(dim=0) - values.mean(dim=0).square()).clamp_min(0).sqrt()
