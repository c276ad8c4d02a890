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
    """Spectral jitter, dropout of periods and of bands, and mixup of normalized patches, in this order; each is off at 0.

    Args:
        filled: for each source, the normalized values of a pixel without data (C,).
        jitter: standard deviation of the gain (around 1) and of the offset (around 0, in units of the normalized range)
            that the patch of each sample and source gets, the same for all of its bands; the result is clipped to [0, 1].
            A patch of a source, or of a period of it, that is missing everywhere is left as it is.
        band_dropout: probability with which each band of a sample shows the values of missing data, below 1. At least one
            band of each source stays.
        period_dropout: probability with which all bands of a period of a sample show the values of missing data, below 1. At
            least one period of each source stays.
        periods: for each source, the period of each of its bands, counted from 0; empty for a source without periods.
        mixup: alpha of the distribution Beta(alpha, alpha) of the share in which each sample is mixed with another one of
            its batch (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018).
    """

    filled: tuple[Tensor, ...]
    jitter: float = 0.0
    band_dropout: float = 0.0
    mixup: float = 0.0
    period_dropout: float = 0.0
    periods: tuple[tuple[int, ...], ...] = ()

    def patches(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Jitter patches and drop periods and bands: N x (B, C, p s, p s), returned as new tensors."""
        found = list(sources)
        if self.jitter:
            periods = self.periods or ((),) * len(found)
            found = [self._jittered(x, filled, own) for x, filled, own in zip(found, self.filled, periods, strict=True)]
        if self.period_dropout:
            found = [
                _dropped(x, filled, self.period_dropout, groups=periods) if periods else x
                for x, filled, periods in zip(found, self.filled, self.periods, strict=True)
            ]
        if self.band_dropout:
            found = [_dropped(x, filled, self.band_dropout) for x, filled in zip(found, self.filled, strict=True)]
        return found

    def _jittered(self, x: Tensor, filled: Tensor, periods: Sequence[int]) -> Tensor:
        gain, offset = self.jitter * torch.randn(2, len(x), 1, 1, 1, device=x.device)
        missing = (x == filled[:, None, None]).flatten(2).all(dim=2)
        if not periods:
            missing = missing.all(dim=1, keepdim=True)
        return torch.where(missing[:, :, None, None], x, (x * (1 + gain) + offset).clamp(0, 1))

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


def _dropped(x: Tensor, filled: Tensor, share: float, *, groups: Sequence[int] | None = None) -> Tensor:
    """Fill bands of patches (B, C, p s, p s), or all bands of a group, each with this probability; one always stays.

    Args:
        x: patches of a source.
        filled: the values of missing data (C,).
        share: the probability.
        groups: that each band belongs to, counted from 0; by default each is one of its own.
    """
    chance = torch.rand(len(x), x.shape[1] if groups is None else max(groups) + 1, device=x.device)
    dropped = (chance < share) & (chance < chance.amax(dim=1, keepdim=True))
    if groups is not None:
        dropped = dropped[:, torch.tensor(groups, device=x.device)]
    return torch.where(dropped[:, :, None, None], filled[:, None, None], x)
