"""Centre path: the centre pixel's own values, added to the pooled features. Torch only; not part of the paper.

Legend for shapes: B patches, C bands and s scale of a source, p patch side, V values of a pixel in all sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibf.network.branch import conv1x1
from mibf.network.spec import HIDDEN, NetworkSpec


class CentrePath(nn.Module):
    """Maps the values of each patch's centre pixel to a change of the pooled features: N x (B, C, p s, p s) -> (B, 128).

    All s x s pixels of a finer source at the centre are inputs of their own, in the branch's order, and none is
    averaged: the layer can learn their mean, but not undo it. The last layer starts at zero, so that an untrained
    network computes what it computes without the path.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.halo = spec.halo
        self.scales = tuple(source.scale for source in spec.sources)
        self.values = conv1x1(sum(source.channels for source in spec.sources), HIDDEN, bias=False)
        self.output = nn.Linear(HIDDEN, HIDDEN)

    def start_at_zero(self) -> None:
        """Set the last layer to zero, after all layers have been initialised."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        """Compute the change of the pooled features."""
        centres = [self._centre(x, scale) for x, scale in zip(sources, self.scales, strict=True)]
        hidden: Tensor = self.values(torch.cat(centres, dim=1))  # (B, 128, 1, 1)
        change: Tensor = self.output(hidden.flatten(1))
        return change

    def _centre(self, x: Tensor, scale: int) -> Tensor:
        """Cut the centre pixel from patches: (B, C, p s, p s) -> (B, C s s, 1, 1)."""
        inside = slice(self.halo * scale, (self.halo + 1) * scale)
        return F.pixel_unshuffle(x[:, :, inside, inside], scale)
