"""Random changes of a batch that keep a network from memorising few samples. Torch only.

All draws come from torch's generator, which the training step seeds by seed, epoch, step and worker: they depend on
nothing else.

Legend for shapes: B samples, C bands and s scale of a source, p patch side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class MixedLabels(NamedTuple):
    """The labels of samples that are mixed of two each: class positions (B,) and the share of the first (B,), above half."""

    first: Tensor
    second: Tensor
    share: Tensor


@dataclass(frozen=True)
class Perturbation:
    """Spectral jitter, band dropout and mixup of normalized patches, in this order; each is off at 0.

    Args:
        filled: for each source, the normalized values of a pixel without data (C,).
        jitter: standard deviation of the gain (around 1) and of the offset (around 0, in units of the normalized range)
            that the patch of each sample and source gets, the same for all of its bands; the result is clipped to [0, 1].
            A patch of a source that is missing everywhere is left as it is.
        band_dropout: probability with which each band of a sample shows the values of missing data, below 1. At least one
            band of each source stays.
        mixup: alpha of the distribution Beta(alpha, alpha) of the share in which each sample is mixed with another one of
            its batch (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018).
    """

    filled: tuple[Tensor, ...]
    jitter: float = 0.0
    band_dropout: float = 0.0
    mixup: float = 0.0

    def patches(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Jitter patches and drop bands: N x (B, C, p s, p s), returned as new tensors."""
        found = list(sources)
        if self.jitter:
            found = [self._jittered(x, filled) for x, filled in zip(found, self.filled, strict=True)]
        if self.band_dropout:
            found = [self._without_bands(x, filled) for x, filled in zip(found, self.filled, strict=True)]
        return found

    def _jittered(self, x: Tensor, filled: Tensor) -> Tensor:
        gain, offset = self.jitter * torch.randn(2, len(x), 1, 1, 1, device=x.device)
        missing = (x == filled[:, None, None]).flatten(1).all(dim=1)[:, None, None, None]
        return torch.where(missing, x, (x * (1 + gain) + offset).clamp(0, 1))

    def _without_bands(self, x: Tensor, filled: Tensor) -> Tensor:
        chance = torch.rand(*x.shape[:2], device=x.device)
        dropped = (chance < self.band_dropout) & (chance < chance.amax(dim=1, keepdim=True))  # one band always stays
        return torch.where(dropped[:, :, None, None], filled[:, None, None], x)

    def mix(self, sources: Sequence[Tensor], labels: Tensor) -> tuple[list[Tensor], MixedLabels | None]:
        """Mix each sample with another one of the batch, patches and labels (B,) alike; no labels are mixed if it is off."""
        if not self.mixup:
            return list(sources), None
        alpha = torch.full((len(labels),), self.mixup, device=labels.device)
        drawn: Tensor = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()
        share = torch.maximum(drawn, 1 - drawn)  # the sample's own label counts most, as in the accuracy of training
        other = torch.randperm(len(labels), device=labels.device)
        weight = share[:, None, None, None]
        return [weight * x + (1 - weight) * x[other] for x in sources], MixedLabels(labels, labels[other], share)
