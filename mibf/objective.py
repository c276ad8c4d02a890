"""The information-bottleneck objective: cross-entropy + beta * rate. Torch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mibf.network import Output


class Loss(NamedTuple):
    """The objective and its two terms, each the mean over the batch, in nats."""

    total: Tensor
    cross_entropy: Tensor
    rate: Tensor


def rate(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, I)) of each row, in nats: (B, D), (B, D) -> (B,).

    0.5 * sum over D of (mean^2 + std^2 - 2 log std - 1), the closed form for diagonal Gaussians
    (Kingma & Welling 2014, appendix B).
    """
    return 0.5 * (mean.square() + std.square() - 2 * std.clamp_min(1e-12).log() - 1).sum(dim=1)


def objective(output: Output, labels: Tensor, *, beta: float, weights: Tensor | None = None) -> Loss:
    """The loss of a batch; `labels` (B,) are class positions from 0.

    The rate is summed over the code's dimensions, as the variational bound has it. The released code
    averages over them instead: its beta of 1e-3 is 1e-3 / 128 = 7.8e-6 here. Of a network without the
    bottleneck the rate is 0: a code that is not drawn has none.

    `weights` (classes,) multiply each sample's cross-entropy. The sum is divided by B, not by the batch's weights as
    torch does: what a sample counts for does not depend on which others share its batch, or its worker.
    """
    cross_entropy = F.cross_entropy(output.logits, labels, weight=weights, reduction="sum") / len(labels)
    mean_rate = cross_entropy.new_zeros(()) if output.std is None else rate(output.mean, output.std).mean()
    return Loss(cross_entropy + beta * mean_rate, cross_entropy, mean_rate)


def class_weights(
    shares: Sequence[float], how: Literal["balanced", "sqrt"] | Mapping[int, float] | None
) -> tuple[float, ...]:
    """A weight for each class's cross-entropy, from the class's share of the samples that are drawn.

    "balanced" is in proportion to 1 / share, "sqrt" to its root; a mapping gives weights by class position, 1 where it
    gives none. All are scaled so that the mean weight of the samples drawn is 1 and the objective keeps its size. A class
    that is never drawn has weight 0.
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
