"""Encoder of one source: patch to features. Torch only.

Legend for shapes: B patches, C bands, s scale, p patch side in reference pixels, q = p // 2 feature side.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mibf.network.spec import FEATURES, SourceSpec


def conv3x3(inner: int, outer: int) -> nn.Sequential:
    """3x3 convolution (zero padding 1, no bias), batch norm, ReLU: the network's basic block."""
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
    )


def conv1x1(inner: int, outer: int, *, bias: bool) -> nn.Sequential:
    """1x1 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inner, outer, kernel_size=1, bias=bias), nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


def pixel_mean(x: Tensor) -> Tensor:
    """Mean over pixels, (B, C, p, p) -> (B, C), computed so that its gradient is channels last like all others."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al., "Squeeze-and-Excitation Networks", 2018), without biases."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each channel by its weight, computed from the means over pixels; keeps the shape (B, channels, p, p)."""
        weights: Tensor = self.weigh(pixel_mean(x))  # (B, channels)
        return x * weights[:, :, None, None]


class Branch(nn.Module):
    """Encodes one source's patches: (B, C, p s, p s) -> (B, 64, q, q).

    The s x s pixels of a finer source within a reference pixel become channels (space to depth), so every pixel is
    used and the branch works on the reference grid like any other.
    """

    def __init__(self, source: SourceSpec) -> None:
        super().__init__()
        first, second = source.widths
        self.scale = source.scale
        self.spatial = conv3x3(source.channels, first)
        self.spectral = conv1x1(first, second, bias=True)
        self.attention = SqueezeExcite(second)
        self.features = conv3x3(second, FEATURES)
        self.pool = nn.MaxPool2d(kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Encode patches."""
        if self.scale > 1:
            x = F.pixel_unshuffle(x, self.scale)  # (B, C s s, p, p)
        x = self.attention(self.spectral(self.spatial(x)))  # (B, second, p, p)
        pooled: Tensor = self.pool(self.features(x))  # (B, 64, q, q)
        return pooled
