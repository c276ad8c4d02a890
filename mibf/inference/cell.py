"""Network computation for some cells: each source's branch, and the layers after the branches. Torch only.

Every patch is zero-padded at its own border, so a plain convolution over the cell would compute a different function.
But the first 3x3 convolution and the pointwise one after it depend, at a pixel, only on which of nine positions the
pixel has in the patch (first, between or last in its row and in its column), because these decide which of the nine
taps fall outside. So:

1. once per cell: the nine taps of the first convolution as pointwise convolutions; their sums over the taps that fall
   inside, for each of the nine positions; ReLU and the second layer on each of the nine feature maps;
2. the channel attention of every patch, from box sums of these maps; the centre path of every pixel, if there is one;
3. for some rows of pixels at a time: the patches, gathered from the maps and weighted in one pass, then everything that
   follows the channel weights and is therefore specific to a patch: the second 3x3 convolution (of its p x p outputs
   only those that the pooling uses), gate, relation, join;
4. bias and ReLU of the pooled features after the pooling (both commute with the maximum); if only logits are
   requested, mean and decoder of the bottleneck as one layer.

With 64 + 2 bands and p = 7 this takes 3.3 million multiply-adds per pixel, against 7.9 million patch by patch. Winograd's
minimal filtering more than halves those of the second 3x3 convolution. As tensor operations its transforms cost more than
it saves (on a CPU, twice the time of the direct convolution); where `mibf.inference.winograd` is available, vector code
computes them and all of a branch's part of step 3.

Legend for shapes: G cells computed together, C channels of a source at a reference pixel, K and L inner widths of its
branch, n = CELL + 2 halo, R rows processed at a time, P = G R CELL patches, p patch side, q = p // 2, N sources.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cache
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from mibf.inference import gpu_kernels
from mibf.inference.batchnorm_folding import (
    AffineLayer,
    FoldedBranch,
    FoldedCentre,
    FoldedNetwork,
    FoldedRelation,
    vector_code,
)
from mibf.inference.outputs import NEEDS_CODE, PixelOutputs, ProductName
from mibf.network.bottleneck import deviation
from mibf.network.relation import even_gate, gate_weights, small_products
from mibf.network.spec import FEATURES, HIDDEN, NetworkSpec

#: Side of a cell in pixels: the fixed-size square computed at a time.
CELL = 64
#: Number of rows of a cell's window whose taps are computed at a time, by device type; on a GPU fewer, larger operations
#: take less time.
BAND = {"cpu": 16, "cuda": 2 * CELL}


class CellEncoder:
    """One source's branch over some cells: computes what patches share once, and the features by rows.

    `windows` is (G, n, n, C).
    """

    def __init__(self, windows: Tensor, branch: FoldedBranch, patch: int, rows: int, dtype: torch.dtype) -> None:
        self.patch, self.rows, self.branch = patch, rows, branch
        cells, side, inner = windows.shape[0], windows.shape[1], branch.spectral.weight.shape[0]
        spans = _spans(side, patch)
        shapes = [(len(down), len(across)) for down in spans for across in spans]
        #: The pixels of a cell's nine maps, one map after the other, then one pixel of zeros: (G, .., L).
        self.pixels = torch.empty(cells, sum(map(math.prod, shapes)) + 1, inner, dtype=dtype, device=windows.device)
        self.pixels[:, -1] = 0
        parts = torch.split(self.pixels, [*map(math.prod, shapes), 1], dim=1)[:-1]
        nine = [part.view(cells, *shape, inner) for part, shape in zip(parts, shapes, strict=True)]
        #: (G, .., .., L) each, by the row's and the column's position in the patch: first, between, last.
        self.maps = nine[:3], nine[3:6], nine[6:]
        # In bands of rows: all taps of the cell at once would be the largest array.
        band = BAND[windows.device.type]
        for start in range(0, side, band):
            self._fill(windows, range(start, min(start + band, side)), spans)
        self.attention = self._attention().to(dtype)  # (G, CELL, CELL, L)

    def _fill(self, windows: Tensor, band: range, spans: Sequence[range]) -> None:
        """Compute some rows of the nine maps; their taps reach one row further."""
        above = max(band.start - 1, 0)
        rows = windows[:, above : band.stop + 1]
        taps = _pointwise(rows, self.branch.taps).view(*rows.shape[:3], 3, 3, -1)
        for i, down in enumerate(spans):
            start, stop = max(band.start, down.start), min(band.stop, down.stop)
            if start >= stop:
                continue
            sums = _sum_taps(taps, 1, i, start - above, stop - start)
            for j, across in enumerate(spans):
                inputs = _sum_taps(sums, 2, j, across.start, len(across)).relu_()
                target = self.maps[i][j][:, start - down.start : stop - down.start]
                target.copy_(_pointwise(inputs, self.branch.spectral).relu_())

    def _attention(self) -> Tensor:
        """Compute the channel weights of every patch, from its mean over the nine maps."""
        (northwest, north, northeast), (west, inner, east), (southwest, south, southeast) = self.maps
        reach = self.patch - 2
        sides = _box(north, 2, reach).add_(_box(south, 2, reach))
        total = _box(_box(inner, 2, reach).add_(west).add_(east), 1, reach).add_(sides)
        total.add_(northwest).add_(northeast).add_(southwest).add_(southeast)
        squeezed = F.linear(total / self.patch**2, self.branch.squeeze).relu_()
        return F.linear(squeezed, self.branch.excite).sigmoid_()

    def features(self, row: int) -> Tensor:
        """Compute the branch's output for the patches of some rows of the cells, starting at `row`: (P, q, q, 64)."""
        p, q = self.patch, self.patch // 2
        cells, size, inner = self.pixels.shape
        places = _places(p, cells, self.pixels.device)[:, row * CELL : (row + self.rows) * CELL]
        gathered = self.pixels.view(cells * size, inner).index_select(0, places.flatten()).view(-1, p + 1, p + 1, inner)
        gathered.mul_(self.attention[:, row : row + self.rows].flatten(0, 2)[:, None, None])
        # (P, p - 1, p - 1, 64): the pooling would not use the last row and column
        full = _convolution(gathered, self.branch.features, padding=0)
        squares = full.view(-1, q, 2, q, 2, FEATURES)
        upright = torch.maximum(squares[:, :, 0], squares[:, :, 1])
        return torch.maximum(upright[:, :, :, 0], upright[:, :, :, 1]).relu_()


class FilteringEncoder(CellEncoder):
    """As `CellEncoder`, with the second 3x3 convolution and what surrounds it by vector code: see `mibf.inference.winograd`.

    Its inputs stay in float32.
    """

    def __init__(self, windows: Tensor, branch: FoldedBranch, patch: int, rows: int, dtype: torch.dtype) -> None:
        super().__init__(windows, branch, patch, rows, torch.float32)
        self.dtype = dtype

    def features(self, row: int) -> Tensor:
        """Compute the branch's output for the patches of some rows of the cells, starting at `row`: (P, q, q, 64)."""
        code, filtering = vector_code(), self.branch.filtering
        assert code is not None
        assert filtering is not None
        places = _places(self.patch, len(self.pixels), self.pixels.device)
        wanted = places[:, row * CELL : (row + self.rows) * CELL].flatten(0, 1)
        attention = self.attention[:, row : row + self.rows].flatten(0, 2)
        q = self.patch // 2
        out = torch.empty(len(wanted), q, q, FEATURES, dtype=self.dtype)
        code.pooled_features(self.pixels.flatten(0, 1), wanted, attention, *filtering, out)
        return out


class FusedEncoder:
    """As `CellEncoder`, by GPU kernels."""

    def __init__(self, windows: Tensor, branch: FoldedBranch, patch: int, rows: int, dtype: torch.dtype) -> None:
        inner, outer = branch.spectral.weight.shape[1], branch.spectral.weight.shape[0]
        taps = branch.taps.weight.view(9, inner, -1).mT.contiguous()
        bias, spectral = branch.taps.bias.view(9, inner)[4], branch.spectral.weight.flatten(1).T.contiguous()
        self.rows = rows
        self.places = _places(patch, 1, windows.device)[0]
        self.pixels = gpu_kernels.nine_maps(windows, taps, bias, spectral, branch.spectral.bias, patch=patch, dtype=dtype)
        self.weights = gpu_kernels.channel_weights(self.pixels, self.places, branch.squeeze, branch.excite, patch=patch)
        self.convolution = branch.features.weight.permute(2, 3, 1, 0).reshape(9, outer, FEATURES).contiguous()
        self.bias = branch.features.bias

    def features(self, row: int) -> Tensor:
        """Compute the branch's output for the patches of some rows of the cells, starting at `row`: (P, q, q, 64)."""
        first, patches = row * CELL, self.rows * CELL
        return gpu_kernels.pooled_features(
            self.pixels, self.places, self.weights, self.convolution, self.bias, first=first, patches=patches
        )


@cache
def _places(patch: int, cells: int, device: torch.device) -> Tensor:
    """Indices of every patch's pixels into the pixels of the cells' nine maps: (G, CELL * CELL, (p + 1) ** 2), int32.

    The first row and column of a patch are its padding and point to the zeros.
    """
    spans = _spans(CELL + patch - 1, patch)
    starts = torch.tensor([0, *(len(down) * len(across) for down in spans for across in spans)]).cumsum(0)
    offset = torch.arange(patch)
    kind = torch.ones(patch, dtype=torch.int64)
    kind[0], kind[-1] = 0, 2
    # Row r of a patch that begins at y, if between first and last, is row y + r - 1 of the corresponding maps.
    within = torch.arange(CELL)[:, None] + torch.where(kind == 1, offset - 1, 0)  # (CELL, p), rows and columns alike
    width = torch.tensor([len(across) for across in spans])[kind]  # (p,), by the column's kind
    first = starts[3 * kind[:, None] + kind]  # (p, p)
    inner = first + within[:, None, :, None] * width + within[None, :, None, :]  # (CELL, CELL, p, p)
    places = F.pad(inner, (1, 0, 1, 0), value=int(starts[-1])).flatten(0, 1).flatten(1).to(device, torch.int32)
    first_of_cell = torch.arange(cells, dtype=torch.int32, device=device) * (int(starts[-1]) + 1)
    return places + first_of_cell[:, None, None]


def centre_change(centre: FoldedCentre, windows: Sequence[Tensor], patch: int) -> Tensor:
    """Compute the centre path of every pixel of some cells, N x (G, n, n, C) -> (G, CELL, CELL, 128), in float32.

    It depends on the pixel alone and is pointwise, so no pixel is computed twice.
    """
    inside = slice(patch // 2, patch // 2 + CELL)
    values = torch.cat([window[:, inside, inside] for window in windows], dim=-1)
    return _pointwise(_pointwise(values, centre.values).relu_(), centre.output)


def forward_from_features(
    net: FoldedNetwork,
    features: Sequence[Tensor],
    products: Collection[ProductName],
    *,
    change: Tensor | None = None,
    kernels: bool = False,
) -> PixelOutputs:
    """Run the network after the branches on N x (P, q, q, 64), computing only what the products need.

    `change` (P, 128) is that of the centre path, where the network has one; `kernels` uses those of a GPU.
    """
    related, gate = _relate(net.relation, features, with_gates="gate" in products, kernels=kernels)
    first, *others = [_refine(x, layer) for x, layer in zip(features, net.refine, strict=True)]
    joined = _pointwise(_concat_relu([first, *related, *others]), net.join).relu_()
    pooled = joined.flatten(1, 2).mean(dim=1).float()
    hidden = _pointwise(pooled if change is None else pooled + change, net.hidden).relu_()
    if NEEDS_CODE.isdisjoint(products):
        return PixelOutputs(_pointwise(hidden, net.logits), gate, None, None)
    assert net.spread is not None  # ensured by `check_products`
    mean, spread = _pointwise(hidden, net.mean), _pointwise(hidden, net.spread)
    return PixelOutputs(_pointwise(mean, net.decoder), gate, mean, deviation(spread))


def _relate(
    relation: FoldedRelation | None, features: Sequence[Tensor], *, with_gates: bool, kernels: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Compute the relation (P, q, q, 128), none in a network without it, and the gates (P, N) if requested."""
    patches, q = features[0].shape[:2]
    if relation is None:
        return [], even_gate(patches, len(features), features[0].device) if with_gates else None
    weights = _pointwise(torch.cat(list(features), dim=-1), relation.gate).view(patches, q, q, -1, FEATURES)
    gates = gate_weights(weights, dim=3)  # N x (P, q, q, 64)
    if kernels:
        pairs = [
            gpu_kernels.gated_products(features[i], features[j], gates[i], gates[j])
            for i, j in combinations(range(len(gates)), 2)
        ]
    else:
        gated = [(feature * gate).permute(0, 3, 1, 2) for feature, gate in zip(features, gates, strict=True)]
        pairs = [small_products(gated[i], gated[j]).permute(0, 2, 3, 1) for i, j in combinations(range(len(gated)), 2)]
    related = _pointwise(pairs[0] if len(pairs) == 1 else torch.cat(pairs, dim=-1), relation.join)
    if not with_gates:
        return [related], None
    gate = torch.stack([gate.float().mean(dim=(1, 2, 3)) for gate in gates], dim=1)
    return [related], gate / gate.sum(dim=1, keepdim=True)  # each was rounded separately


def _spans(side: int, patch: int) -> tuple[range, range, range]:
    """Return the pixels along an axis of a cell's window that are first, between and last in some patch."""
    return range(side - patch + 1), range(1, side - 1), range(patch - 1, side)


def _sum_taps(taps: Tensor, axis: int, position: int, start: int, length: int) -> Tensor:
    """Sum the taps of an axis, those of the three that fall inside the patch, for `length` pixels from `start` on.

    The taps are axis 3, which is summed away. `position` in the patch is 0, 1 or 2: first, between, last.
    """
    before, at, after = taps.unbind(dim=3)
    middle = at.narrow(axis, start, length)
    if position == 0:
        return middle + after.narrow(axis, start + 1, length)
    total = middle + before.narrow(axis, start - 1, length)
    return total if position == 2 else total.add_(after.narrow(axis, start + 1, length))


def _concat_relu(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the ReLU of arrays (.., K) along the last axis."""
    if parts[0].device.type == "cuda":  # two contiguous passes take less time there than one that writes with gaps
        return torch.cat(list(parts), dim=-1).relu_()
    widths = [part.shape[-1] for part in parts]
    joined = parts[0].new_empty(*parts[0].shape[:-1], sum(widths))
    for part, target in zip(parts, torch.split(joined, widths, dim=-1), strict=True):
        torch.clamp_min(part, 0, out=target)
    return joined


def _box(x: Tensor, axis: int, reach: int) -> Tensor:
    """Sum over `reach` neighbours along an axis, in float32."""
    size = x.shape[axis] - reach + 1
    total = x.narrow(axis, 0, size).to(torch.float32, copy=True)
    for start in range(1, reach):
        total += x.narrow(axis, start, size)
    return total


def _pointwise(x: Tensor, layer: AffineLayer) -> Tensor:
    """Apply a 1x1 convolution over the last axis: (.., K) -> (.., L).

    On a CPU, pixels are passed as 16 or more images, whatever images they come from: with fewer, torch and oneDNN use
    plain matrix products, which in float32 take up to twice the time. On a GPU matrix products are what is fastest.
    """
    if x.device.type == "cuda":
        return F.linear(x, layer.weight.flatten(1), layer.bias)
    count = x.shape[:-1].numel()
    images = x.reshape(16 if count % 16 == 0 else x.shape[:-2].numel(), -1, 1, x.shape[-1])
    return F.conv2d(images.permute(0, 3, 1, 2), *layer).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _refine(x: Tensor, layer: AffineLayer) -> Tensor:
    """Apply the second 3x3 convolution of the features (P, q, q, 64), given as a convolution or as a matrix."""
    if layer.weight.dim() == 2:
        return F.linear(x.flatten(1), *layer).view(x.shape)
    return _convolution(x, layer, padding=1)


def _convolution(x: Tensor, layer: AffineLayer, *, padding: int) -> Tensor:
    """Apply a 3x3 convolution, channels last: (P, rows, columns, K) -> (P, .., .., 64)."""
    return F.conv2d(x.permute(0, 3, 1, 2), *layer, padding=padding).permute(0, 2, 3, 1)


def rows_within_budget(spec: NetworkSpec, dtype: torch.dtype, budget: int, *, cells: int, gathered: bool = True) -> int:
    """Number of rows of each cell to process at a time: the largest divisor of `CELL` whose patches fit the budget, or 1.

    Kernels of a GPU and vector code do not write the patches to memory: they are not `gathered`.
    """
    p, q = spec.patch, spec.patch // 2
    inner = sum(source.widths[1] for source in spec.sources)
    pairs = 0 if "relation" in spec.without else len(spec.sources) * (len(spec.sources) - 1) // 2
    patch = (p + 1) ** 2 * inner + (p - 1) ** 2 * FEATURES * 2 if gathered else 0
    after = q * q * (FEATURES * (6 * len(spec.sources) + 3 * pairs) + 5 * HIDDEN)
    patches = budget // ((patch + after) * dtype.itemsize)
    return max(rows for rows in range(1, CELL + 1) if CELL % rows == 0 and (rows == 1 or cells * rows * CELL <= patches))
