"""MIBF-Net: branches, noise adaptation, relation, join and bottleneck, connected. Torch only.

A spec may leave parts out (`NetworkSpec.without`); the parameters of the others keep their names and shapes, except
those of the join, which has fewer inputs without the relation. A spec may also add one (`NetworkSpec.centre`).

Geng et al., "Multisource Joint Representation Learning Fusion Classification for Remote Sensing
Images", IEEE TGRS 61, 2023, doi 10.1109/TGRS.2023.3296813.

Legend for shapes: B patches, N sources, C bands and s scale of a source, p patch side, q = p // 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mibf.network.bottleneck import Bottleneck
from mibf.network.branch import Branch, conv1x1, conv3x3, pixel_mean
from mibf.network.centre import CentrePath
from mibf.network.noise_adaptation import NoiseAdaptation
from mibf.network.relation import Relation, even_gate
from mibf.network.spec import FEATURES, HIDDEN, NetworkSpec, check_shapes


class Output(NamedTuple):
    """The network's outputs for B patches, in float32."""

    logits: Tensor  #: (B, classes), of a sample of the code in training, of its mean in evaluation
    mean: Tensor  #: (B, 128), of the bottleneck's Gaussian
    std: Tensor | None  #: (B, 128), of the bottleneck's Gaussian; None without the bottleneck
    gate: Tensor  #: (B, N), the weight of each source in the relation; rows sum to one, all equal without a relation


class MIBFNet(nn.Module):
    """Classifies the centre pixel of each patch, from the same patch of N sources.

    In training each pooled feature is dropped with the probability `dropout`. It is not part of the spec: a trained
    network computes the same with and without it.
    """

    def __init__(self, spec: NetworkSpec, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.spec = spec
        count = len(spec.sources)
        self.branches = nn.ModuleList(Branch(source) for source in spec.sources)
        # Always present: its mean gate is in every network's state, and training averages it over workers.
        self.noise = NoiseAdaptation(count)
        self.relation = Relation(count) if "relation" not in spec.without else None
        self.refine = nn.ModuleList(conv3x3(FEATURES, FEATURES) for _ in spec.sources)
        self.join = conv1x1(count * FEATURES + (0 if self.relation is None else HIDDEN), HIDDEN, bias=True)
        self.bottleneck = Bottleneck(spec.classes, hidden=spec.hidden, draws="bottleneck" not in spec.without)
        self.apply(_xavier)
        self.centre: CentrePath | None = None
        if spec.centre:  # last, so that with the same seed all other weights start as without it
            self.centre = CentrePath(spec).apply(_xavier)
            self.centre.start_at_zero()

    def forward(self, sources: Sequence[Tensor]) -> Output:
        """Classify patches: one tensor (B, C, p s, p s) per source, in the spec's order, scaled to [0, 1].

        Raises:
            InputError: the number of sources, bands, patch size or scale differs from the spec.
        """
        self._check(sources)
        features = [branch(x) for branch, x in zip(self.branches, sources, strict=True)]
        if "noise" not in self.spec.without:
            features = self.noise(features)  # N x (B, 64, q, q)
        related, gate = self._relate(features)
        if self.training:
            self.noise.observe(gate)
        first, *others = [refine(x) for refine, x in zip(self.refine, features, strict=True)]
        joined = self.join(torch.cat([first, *related, *others], dim=1))
        pooled = self._add_centre(pixel_mean(joined), sources)
        logits, mean, std = self.bottleneck(self.dropout(pooled))
        return Output(logits, mean, std, gate)

    def _add_centre(self, pooled: Tensor, sources: Sequence[Tensor]) -> Tensor:
        """Add the centre path to the pooled features (B, 128), if the network has one."""
        return pooled if self.centre is None else pooled + self.centre(sources)

    def _relate(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Compute the relation (B, 128, q, q), none if the network has no such part, and the gates (B, N)."""
        if self.relation is None:
            return [], even_gate(features[0].shape[0], len(features), features[0].device)
        relation, gate = self.relation(features)
        return [relation], gate

    def _check(self, sources: Sequence[Tensor]) -> None:
        check_shapes(self.spec, [tuple(x.shape[1:]) for x in sources], rows=self.spec.patch, columns=self.spec.patch)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
