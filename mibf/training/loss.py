"""The information-bottleneck loss: cross-entropy + beta * KL term. Torch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mibf.network.bottleneck import kl_divergence
from mibf.network.mibfnet import Output
from mibf.training.perturbation import MixedLabels


class Loss(NamedTuple):
    """The loss and its two terms (`rate` is the KL term), each the mean over the batch, in nats."""

    total: Tensor
    cross_entropy: Tensor
    rate: Tensor


def objective(
    output: Output,
    labels: Tensor,
    *,
    beta: float,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    mixed: MixedLabels | None = None,
) -> Loss:
    """Compute the loss of a batch; `labels` (B,) are class positions from 0.

    The KL term is summed over the code's dimensions, as in the variational bound. The released code averages over them
    instead: its beta of 1e-3 is 1e-3 / 128 = 7.8e-6 here. For a network without the bottleneck the KL term is 0, because
    the code is not sampled.

    `weights` (classes,) multiply each sample's cross-entropy. The sum is divided by B, not by the sum of the batch's
    weights as torch does, so a sample's contribution does not depend on the other samples of its batch or worker.

    With `label_smoothing` a sample's label is a distribution in which this share is spread over all classes evenly
    (Szegedy et al. 2016), and the weight remains that of the sample's class. With `mixed`, which replaces `labels`, the
    cross-entropy is that of both labels, by their shares.
    """
    if mixed is None and not label_smoothing:
        cross_entropy = F.cross_entropy(output.logits, labels, weight=weights, reduction="sum") / len(labels)
    elif mixed is None:
        cross_entropy = _weighted(output.logits, labels, weights, label_smoothing).mean()
    else:
        first, second = (_weighted(output.logits, each, weights, label_smoothing) for each in mixed[:2])
        cross_entropy = (mixed.share * first + (1 - mixed.share) * second).mean()
    mean_rate = cross_entropy.new_zeros(()) if output.std is None else kl_divergence(output.mean, output.std).mean()
    return Loss(cross_entropy + beta * mean_rate, cross_entropy, mean_rate)


def _weighted(logits: Tensor, labels: Tensor, weights: Tensor | None, label_smoothing: float) -> Tensor:
    """Cross-entropy of each sample with its smoothed label, times its class's weight (B,)."""
    found = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return found if weights is None else found * weights[labels]


def class_weights(
    shares: Sequence[float], how: Literal["balanced", "sqrt"] | Mapping[int, float] | None
) -> tuple[float, ...]:
    """Compute a weight for each class's cross-entropy, from the class's share of the training samples.

    "balanced" is proportional to 1 / share, "sqrt" to its square root; a mapping gives weights by class position, with
    default 1. All are scaled so that the mean weight of the samples is 1 and the loss keeps its magnitude. A class that
    is never sampled has weight 0.
    """
    drawn = torch.tensor(shares, dtype=torch.float64)
    if how == "balanced":
        weights = 1 / drawn
    elif how == "sqrt":
        weights = drawn.rsqrt()
    else:
        weights = torch.tensor([(how or {}).get(c, 1.0) for c in range(len(shares))], dtype=torch.float64)
    weights = torch.where(drawn > 0, weights, 0.0)
    return tuple((weights / (weights * drawn).sum()).tolist())
