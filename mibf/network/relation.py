"""The relation between sources (the paper's cross-source relationship encoding). Torch only.

Legend for shapes: B patches, N sources, q feature side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mibf.network.branch import conv1x1
from mibf.network.spec import FEATURES, HIDDEN


def small_products(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products over the last two axes, (..., q, q) each; written out because BLAS is slow on 3x3 matrices."""
    products: Tensor = _SmallProducts.apply(left, right)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return products


def _written_out(left: Tensor, right: Tensor) -> Tensor:
    products = left[..., :, :1] * right[..., :1, :]
    for k in range(1, left.shape[-1]):
        products.addcmul_(left[..., :, k : k + 1], right[..., k : k + 1, :])
    return products


class _SmallProducts(torch.autograd.Function):
    """Small products whose derivatives are small products too; autograd's would be sums over broadcast outer products."""

    @staticmethod
    def forward(ctx: FunctionCtx, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return _written_out(left, right)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        return _written_out(gradient, right.mT), _written_out(left.mT, gradient)


def gate_weights(logits: Tensor, *, dim: int) -> tuple[Tensor, ...]:
    """Compute the gates of N sources from N - 1 logits along an axis: their softmax with a fixed zero as the last logit.

    With two sources this is sigmoid(logit) and its complement, the paper's gate.
    """
    if logits.shape[dim] == 1:
        first = logits.squeeze(dim).sigmoid()
        return first, 1 - first
    return torch.cat([logits, torch.zeros_like(logits.narrow(dim, 0, 1))], dim=dim).softmax(dim=dim).unbind(dim)


def even_gate(batch: int, sources: int, device: torch.device) -> Tensor:
    """Equal gates (B, N), for a network without a relation: 1 / N each, in float32."""
    return torch.full((batch, sources), 1 / sources, device=device)


class Relation(nn.Module):
    """Gates the sources against each other and multiplies the gated features pair by pair.

    The products of all pairs are joined by the 1x1 convolution; two sources are one pair.
    """

    def __init__(self, sources: int) -> None:
        super().__init__()
        self.sources = sources
        self.pairs = list(combinations(range(sources), 2))
        self.gate = nn.Conv2d(sources * FEATURES, (sources - 1) * FEATURES, kernel_size=1)
        self.join = conv1x1(len(self.pairs) * FEATURES, HIDDEN, bias=False)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the relation (B, 128, q, q) and the gates (B, N), which sum to one, from N features (B, 64, q, q)."""
        batch, _, q, _ = features[0].shape
        logits = self.gate(torch.cat(list(features), dim=1)).view(batch, self.sources - 1, FEATURES, q, q)
        gates = gate_weights(logits, dim=1)  # N x (B, 64, q, q)
        gated = [feature * gate for feature, gate in zip(features, gates, strict=True)]
        products = torch.cat([small_products(gated[i], gated[j]) for i, j in self.pairs], dim=1)
        return self.join(products), torch.stack([gate.float().mean(dim=(1, 2, 3)) for gate in gates], dim=1)
