"""The relation between sources (the paper's cross-source relationship encoding). Minimal: torch alone.

Legend for shapes: B patches, N sources, q feature side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from mibf.branch import conv1x1
from mibf.spec import FEATURES, HIDDEN


def small_products(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products of the last two axes, (..., q, q) each: written out, for BLAS is slow on 3x3 matrices."""
    products = left[..., :, :1] * right[..., :1, :]
    for k in range(1, left.shape[-1]):
        products = products + left[..., :, k : k + 1] * right[..., k : k + 1, :]
    return products


class Relation(nn.Module):
    """Gates the sources against each other and multiplies the gated features, pair by pair.

    With two sources the gate is the paper's sigmoid: a softmax over one learnt logit and a fixed
    zero. With N sources it is the softmax over N - 1 learnt logits and a fixed zero, and the products
    of all pairs are joined by the 1x1 convolution.
    """

    def __init__(self, sources: int) -> None:
        super().__init__()
        self.sources = sources
        self.pairs = list(combinations(range(sources), 2))
        self.gate = nn.Conv2d(sources * FEATURES, (sources - 1) * FEATURES, kernel_size=1)
        self.join = conv1x1(len(self.pairs) * FEATURES, HIDDEN, bias=False)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """From N features (B, 64, q, q) to the relation (B, 128, q, q) and the gates (B, N), which sum to one."""
        batch, _, q, _ = features[0].shape
        logits = self.gate(torch.cat(list(features), dim=1)).view(batch, self.sources - 1, FEATURES, q, q)
        logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)
        gate = logits.softmax(dim=1)  # (B, N, 64, q, q)
        gated = [feature * gate[:, position] for position, feature in enumerate(features)]
        products = torch.cat([small_products(gated[i], gated[j]) for i, j in self.pairs], dim=1)
        return self.join(products), gate.float().mean(dim=(2, 3, 4))
