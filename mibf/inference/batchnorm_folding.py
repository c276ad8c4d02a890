"""A trained network's weights for inference: batch norms folded into their convolutions. Torch only.

In evaluation a batch norm is y = (x - mean) * weight / sqrt(var + eps) + bias, an affine map of each channel
(Ioffe & Szegedy 2015); together with the convolution before it, it is one convolution. Folding is done in float64, so
it costs no accuracy.

Legend for shapes: C channels of a source at one reference pixel, K and L the inner widths of its branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibf.network.branch import Branch, SqueezeExcite
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NetworkSpec

#: Pixels of the features for which a 3x3 convolution is written as a matrix; with more, its zeros cost more than it saves.
LARGEST_MATRIX = 9


@cache
def vector_code() -> ModuleType | None:
    """Return `mibf.inference.winograd`, or None without Numba; imported at the first use, because that takes a moment."""
    try:
        from mibf.inference import winograd
    except ImportError:  # it is optional
        return None
    return winograd


class AffineLayer(NamedTuple):
    """An affine map: weight and bias of a convolution or a linear layer."""

    weight: Tensor
    bias: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> AffineLayer:
        """Convert the layer to a device and dtype; convolution weights become channels last."""
        layout = torch.channels_last if self.weight.dim() == 4 else torch.contiguous_format
        return AffineLayer(self.weight.to(device, dtype).contiguous(memory_format=layout), self.bias.to(device, dtype))


@dataclass(frozen=True)
class FoldedBranch:
    """A branch without batch norms."""

    scale: int
    taps: (
        AffineLayer  #: the 3x3 convolution as 9 pointwise ones, (9 K, C, 1, 1), row by row; only the middle one has the bias
    )
    spectral: AffineLayer  #: (L, K, 1, 1)
    squeeze: Tensor  #: (L / 16, L), float32
    excite: Tensor  #: (L, L / 16), float32
    features: AffineLayer  #: (64, L, 3, 3)
    filtering: AffineLayer | None  #: `features` for `mibf.inference.winograd`, where that computes it; bias in float32


@dataclass(frozen=True)
class FoldedRelation:
    """A relation without batch norms."""

    gate: AffineLayer
    join: AffineLayer


@dataclass(frozen=True)
class FoldedCentre:
    """A centre path without batch norms, in float32."""

    values: AffineLayer  #: (128, values of a pixel in all sources, 1, 1)
    output: AffineLayer  #: (128, 128, 1, 1)


@dataclass(frozen=True)
class FoldedNetwork:
    """A network without batch norms: the per-patch convolutions in the working dtype, everything else in float32.

    What patches share takes little time, and rounding there loses most accuracy: the first layer sees small differences
    between large values. With it in bfloat16 too, 0.9 % of the labels of a trained model changed; without, 0.06 %.
    """

    spec: NetworkSpec
    branches: tuple[FoldedBranch, ...]
    relation: FoldedRelation | None  #: None in a network without a relation
    refine: tuple[AffineLayer, ...]  #: convolutions (64, 64, 3, 3), or matrices (64 q q, 64 q q), see `_matrix`
    join: AffineLayer
    centre: FoldedCentre | None  #: None in a network without a centre path
    hidden: AffineLayer
    mean: AffineLayer
    spread: AffineLayer | None  #: None in a network without a bottleneck
    decoder: AffineLayer
    logits: AffineLayer  #: mean and decoder, two linear layers in one: (classes, hidden, 1, 1)

    @classmethod
    def of(cls, network: MIBFNet, *, device: torch.device, dtype: torch.dtype, filtering: bool = True) -> FoldedNetwork:
        """Fold a network's current weights; with `filtering`, also transform those of convolutions where it is possible."""

        def wide(layer: AffineLayer) -> AffineLayer:
            return layer.to(device, dtype)

        def exact(layer: AffineLayer) -> AffineLayer:
            """Convert a linear layer to a 1x1 convolution."""
            return AffineLayer(layer.weight[:, :, None, None], layer.bias).to(device, torch.float32)

        def refine(layer: AffineLayer) -> AffineLayer:
            """Convert the refining convolutions to matrices on a GPU, where large matrix products are much faster."""
            q = network.spec.patch // 2
            return _matrix(layer, q) if device.type == "cuda" and q * q <= LARGEST_MATRIX else layer

        bottleneck, relation, centre = network.bottleneck, network.relation, network.centre
        mean, decoder = _plain(bottleneck.mean), _plain(bottleneck.decoder)
        return cls(
            spec=network.spec,
            branches=tuple(_branch(cast(Branch, branch), device, dtype, filtering) for branch in network.branches),
            relation=None if relation is None else FoldedRelation(wide(_plain(relation.gate)), wide(_folded(relation.join))),
            refine=tuple(wide(refine(_folded(block))) for block in network.refine),
            join=wide(_folded(network.join)),
            centre=None
            if centre is None
            else FoldedCentre(_folded(centre.values).to(device, torch.float32), exact(_plain(centre.output))),
            hidden=exact(_plain(bottleneck.hidden)),
            mean=exact(mean),
            spread=None if bottleneck.spread is None else exact(_plain(bottleneck.spread)),
            decoder=exact(decoder),
            logits=exact(AffineLayer(decoder.weight @ mean.weight, decoder.weight @ mean.bias + decoder.bias)),
        )


def _branch(branch: Branch, device: torch.device, dtype: torch.dtype, filtering: bool) -> FoldedBranch:
    spatial = _folded(branch.spatial)
    kernels, channels = spatial.weight.shape[:2]
    taps = spatial.weight.permute(2, 3, 0, 1).reshape(9 * kernels, channels, 1, 1)
    bias = torch.zeros(9, kernels, dtype=taps.dtype, device=taps.device)
    bias[4] = spatial.bias
    squeeze, excite = _attention(branch.attention)
    features = _folded(branch.features)
    return FoldedBranch(
        scale=branch.scale,
        taps=AffineLayer(taps, bias.flatten()).to(device, torch.float32),
        spectral=_folded(branch.spectral).to(device, torch.float32),
        squeeze=squeeze.to(device),
        excite=excite.to(device),
        features=features.to(device, dtype),
        filtering=_filtering(features, device, dtype) if filtering else None,
    )


def _filtering(layer: AffineLayer, device: torch.device, dtype: torch.dtype) -> AffineLayer | None:
    """Transform a 3x3 convolution for minimal filtering, where this CPU can compute that."""
    code = vector_code() if device.type == "cpu" else None
    if code is None or not code.is_available(layer.weight.shape[1], dtype):
        return None
    return AffineLayer(code.transformed(layer.weight, dtype), layer.bias.float())


def _attention(attention: SqueezeExcite) -> tuple[Tensor, Tensor]:
    squeeze, excite = (cast(nn.Linear, attention.weigh[i]).weight.detach().float().clone() for i in (0, 2))
    return squeeze, excite


def _plain(layer: nn.Module) -> AffineLayer:
    layer = cast(nn.Conv2d | nn.Linear, layer)
    assert layer.bias is not None
    return AffineLayer(layer.weight.detach().double(), layer.bias.detach().double())


def _folded(block: nn.Module) -> AffineLayer:
    """Fold a convolution and the batch norm after it into one convolution, in float64."""
    convolution, norm = cast(nn.Conv2d, cast(nn.Sequential, block)[0]), cast(nn.BatchNorm2d, cast(nn.Sequential, block)[1])
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = norm.bias.detach().double() - norm.running_mean.double() * gain
    if convolution.bias is not None:
        bias = bias + convolution.bias.detach().double() * gain
    return AffineLayer(convolution.weight.detach().double() * gain[:, None, None, None], bias)


def _matrix(layer: AffineLayer, q: int) -> AffineLayer:
    """Write a 3x3 convolution with zero padding on q x q pixels as a matrix: every pixel's channels to every pixel's.

    Both sides are channels last. With 3 x 3 pixels two fifths of the matrix are zeros.
    """
    inner, count = layer.weight.shape[1], q * q * layer.weight.shape[1]
    one_at_a_time = torch.eye(count, dtype=layer.weight.dtype, device=layer.weight.device).view(count, q, q, inner)
    outputs = F.conv2d(one_at_a_time.permute(0, 3, 1, 2), layer.weight, padding=1)
    return AffineLayer(outputs.permute(0, 2, 3, 1).reshape(count, -1).T, layer.bias.repeat(q * q))
