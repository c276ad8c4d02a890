"""A model with its normalization as one torch module, from raw pixel values to probabilities, for export. Torch only.

It computes every patch on its own, as the network's definition says, so that it has plain operations alone; `Dense` computes
the same several times faster.

Legend for shapes: N windows, C bands and s scale of a source, H x W reference pixels, p patch side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mibf.network.mibfnet import MIBFNet
from mibf.normalization import Scaling


class _Normalize(nn.Module):
    """Scales raw values of a source to [0, 1]; a pixel with NaN in any band takes every band's fill value."""

    low: Tensor
    gain: Tensor
    fill: Tensor

    def __init__(self, low: Tensor, high: Tensor, fill: Tensor) -> None:
        super().__init__()
        constant = high <= low
        gain = torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, high - low))
        for name, values in (("low", low), ("gain", gain), ("fill", fill)):
            self.register_buffer(name, values[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, rows, columns)."""
        missing = torch.isnan(x).any(dim=1, keepdim=True)
        return ((torch.where(missing, self.fill, x) - self.low) * self.gain).clamp(0, 1)


class RawModel(nn.Module):
    """Classifies every pixel of windows of raw values: the mean of the networks' probabilities, weighted by shares.

    Args:
        networks: in evaluation mode, with the same spec.
        temperatures: divisors of the logits, one for each network.
        shares: of the networks in the mean; they are scaled to sum to one.
        scaling: normalization of the sources; quantiles are not matched.
        class_ids: id of each class in maps.
    """

    ids: Tensor
    shares: Tensor

    def __init__(
        self,
        networks: Sequence[MIBFNet],
        *,
        temperatures: Sequence[float],
        shares: Sequence[float],
        scaling: Scaling,
        class_ids: Sequence[int],
    ) -> None:
        super().__init__()
        self.spec = networks[0].spec
        self.networks = nn.ModuleList(networks).eval().requires_grad_(False)
        limits = [scaling[source.name] for source in self.spec.sources]
        self.normalize = nn.ModuleList(
            _Normalize(*(torch.from_numpy(values) for values in (each.low, each.high, each.fill))) for each in limits
        )
        self.temperatures = tuple(temperatures)
        self.register_buffer("shares", torch.tensor(shares, dtype=torch.float32) / sum(shares))
        self.register_buffer("ids", torch.tensor(class_ids, dtype=torch.uint8))

    def forward(self, *sources: Tensor) -> tuple[Tensor, Tensor]:
        """Classify sources (N, C, (H + p - 1) s, (W + p - 1) s).

        Returns:
            Probabilities (N, classes, H, W) and class ids (N, H, W).
        """
        p = self.spec.patch
        first, scale = sources[0], self.spec.sources[0].scale
        batch = first.shape[0]
        rows, columns = first.shape[2] // scale - p + 1, first.shape[3] // scale - p + 1
        patches = [
            _patches(normalize(x), rows, columns, p * source.scale, source.scale)
            for normalize, x, source in zip(self.normalize, sources, self.spec.sources, strict=True)
        ]
        parts = [
            (network(patches).logits / temperature).softmax(dim=-1)
            for network, temperature in zip(self.networks, self.temperatures, strict=True)
        ]
        mean = torch.stack([part * share for part, share in zip(parts, self.shares, strict=True)]).sum(dim=0)
        probabilities = mean.reshape(batch, rows, columns, self.spec.classes).permute(0, 3, 1, 2)
        return probabilities, self.ids[probabilities.argmax(dim=1)]


def _patches(x: Tensor, rows: int, columns: int, side: int, scale: int) -> Tensor:
    """Cut the patch of every reference pixel: (N, C, ..) -> (N H W, C, p s, p s)."""
    within = torch.arange(side, device=x.device)
    down = torch.arange(rows, device=x.device)[:, None] * scale + within  # (H, p s)
    across = torch.arange(columns, device=x.device)[:, None] * scale + within
    cut = x[:, :, down][..., across]  # (N, C, H, p s, W, p s)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, x.shape[1], side, side)
