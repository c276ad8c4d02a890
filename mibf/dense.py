"""Exact inference for every pixel of a tile, without computing every patch alone. Torch alone.

`Dense` is the one entry. Each pixel's result is that of `MIBFNet` on the patch around it; what
neighbouring patches have in common is computed once.

Every patch is padded with zeros at its own border, so a convolution over the tile is another function. But the
first 3x3 convolution, and the pointwise one after it, depend at a pixel only on which of nine positions in
the patch the pixel has: first, between or last in its row and in its column, for these decide which of the nine taps fall
outside. So:

1. for the cell, once: the nine taps of the first convolution as pointwise convolutions; their sums over the
   taps that are inside, for each of the nine positions; ReLU and the second layer on each of the nine maps;
2. the channel attention of every patch from box sums of these maps;
3. for some rows of pixels at a time: the patches gathered from the maps and weighed, in one pass, then all that comes
   after a patch's own weights and so is its own: the second 3x3 convolution (of its p x p outputs only those that the
   pool uses), gate, relation, join;
4. where only logits are asked for, mean and decoder of the bottleneck as one layer; bias and ReLU of the pooled
   features after the pool (both commute with the maximum).

Batch norms are folded (`mibf.folded`). Winograd's minimal filtering would halve the multiplications of the second
3x3 convolution, but as tensor operations its transforms cost more than it saves (on a CPU, twice the direct one's time).

Work goes in cells of `CELL` x `CELL` pixels counted from the tile's first pixel. All shapes depend on network
and device alone: a pixel's result is bit for bit the same whatever tile holds it, as long as tiles begin
on a cell's corner.

Legend for shapes: C channels of a source at a reference pixel, K and L inner widths of its branch, n = CELL + 2 halo, R rows
in work, P = R CELL patches, p patch side, q = p // 2, N sources.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from mibf.bottleneck import deviation
from mibf.errors import InputError
from mibf.folded import FoldedBranch, FoldedNetwork, Layer
from mibf.network import MIBFNet
from mibf.precision import DTYPES, Precision, ieee_float32
from mibf.products import NEEDS_CODE, Belief, Decoding, ProductName, check_products, standard_draws
from mibf.relation import shares, small_products
from mibf.spec import FEATURES, HIDDEN, NetworkSpec, SourceSpec, check_shapes

#: Side of a cell in pixels: the fixed-size square that is computed at a time.
CELL = 64
#: Bytes that the rows in work may take, by type of device; at least one row is taken.
BUDGET = {"cpu": 32 << 20, "cuda": 2 << 30}
#: Draws of the code for `information`, unless others are asked for.
DRAWS = 16


class Dense:
    """A trained network made ready to classify whole tiles; its weights are those of the moment it was made.

    Args:
        network: in evaluation mode, on the device to compute on.
        precision: of each patch's own convolutions; what patches share and the bottleneck are in float32 always.
        temperature: what logits are divided by before the softmax; a bundle has it.
        draws: of the code, for `information`.
        seed: of these draws.

    >>> from mibf.spec import NetworkSpec, SourceSpec
    >>> spec = NetworkSpec((SourceSpec("optical", 4), SourceSpec("sar", 2, scale=2)), classes=3, patch=7)
    >>> dense = Dense(MIBFNet(spec).eval())
    >>> optical = torch.rand(4, 100 + 2 * spec.halo, 80 + 2 * spec.halo)
    >>> sar = torch.rand(2, 2 * (100 + 2 * spec.halo), 2 * (80 + 2 * spec.halo))
    >>> tile = dense([optical, sar], products=["class", "probabilities"])
    >>> tile["class"].shape, tile["probabilities"].shape
    (torch.Size([100, 80]), torch.Size([3, 100, 80]))
    """

    def __init__(
        self,
        network: MIBFNet,
        *,
        precision: Precision = "float32",
        temperature: float = 1.0,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> None:
        if network.training:
            raise ValueError("the network is in training mode; call network.eval() first")
        self.spec: NetworkSpec = network.spec
        self.device = next(network.parameters()).device
        self.dtype = DTYPES[precision]
        self.folded = FoldedNetwork.of(network, device=self.device, dtype=self.dtype)
        noise = standard_draws(draws, HIDDEN, seed=seed).to(self.device)
        self.decoding = Decoding(self.folded.decoder.weight, noise, temperature)
        self.rows = rows_within_budget(self.spec, self.dtype, BUDGET[self.device.type])

    @torch.inference_mode()
    def __call__(
        self,
        sources: Sequence[Tensor],
        *,
        products: Collection[ProductName] = ("class", "confidence"),
        valid: Tensor | None = None,
    ) -> dict[ProductName, Tensor]:
        """The products of every pixel of a tile.

        Args:
            sources: a tensor (C, (H + 2 halo) scale, (W + 2 halo) scale) a source, scaled to [0, 1], float32.
            products: what is asked for, of `mibf.products.PRODUCT_NAMES`.
            valid: (H + 2 halo, W + 2 halo) of bool, where there are data. Values elsewhere are not read: they
                count as 0 in the patches that they touch, and the pixels have no result.

        Returns:
            By product (H, W), or (channels, H, W) for `probabilities`, `gate` and `logits`, on the network's device;
            `class` is int64, the others float32. Pixels that are not valid have class -1 and NaN.

        Raises:
            InputError: the number of sources, bands or pixels is not the spec's, or a value is not finite where data
                are valid.
        """
        check_products(products)
        height, width = self._tile_shape(sources, valid)
        checked = [_checked(x, valid, s) for x, s in zip(sources, self.spec.sources, strict=True)]
        core = None if valid is None else valid[self.spec.halo :, self.spec.halo :][:height, :width].to(self.device)
        result = {name: self._empty(name, height, width) for name in products}
        code = not NEEDS_CODE.isdisjoint(products)
        with ieee_float32(self.device):
            for y in range(0, height, CELL):
                for x in range(0, width, CELL):
                    wanted = None if core is None else core[y : y + CELL, x : x + CELL]
                    if wanted is not None and not wanted.any():
                        continue
                    encoders = self._encoders(checked, y, x)
                    for row in range(0, min(CELL, height - y), self.rows):
                        if wanted is not None and not wanted[row : row + self.rows].any():
                            continue
                        belief = self._belief([encoder.features(row) for encoder in encoders], code=code)
                        for name in products:
                            part = result[name][..., y + row : min(y + row + self.rows, y + CELL), x : x + CELL]
                            values = self.decoding.product(name, belief).view(self.rows, CELL, -1).permute(2, 0, 1)
                            part.copy_(values[:, : part.shape[-2], : part.shape[-1]].view_as(part))
        if core is not None:
            for name, values in result.items():
                values.masked_fill_(~core, _none(name))
        return result

    def _tile_shape(self, sources: Sequence[Tensor], valid: Tensor | None) -> tuple[int, int]:
        """Rows and columns of the tile without its halo, by the first source; the others are checked against it."""
        reach, scale = 2 * self.spec.halo, self.spec.sources[0].scale
        shape = sources[0].shape if len(sources) and sources[0].dim() == 3 else (0, 0, 0)
        rows, columns = max(shape[1] // scale, reach + 1), max(shape[2] // scale, reach + 1)
        check_shapes(self.spec, [tuple(x.shape) for x in sources], rows=rows, columns=columns)
        if valid is not None and tuple(valid.shape) != (rows, columns):
            raise InputError(
                f"the validity is {' x '.join(map(str, valid.shape))} (rows x columns); "
                f"the tile with its halo is {rows} x {columns} reference pixels."
            )
        return rows - reach, columns - reach

    def _empty(self, name: ProductName, height: int, width: int) -> Tensor:
        channels = {"probabilities": self.spec.classes, "logits": self.spec.classes, "gate": len(self.spec.sources)}
        shape = (channels[name], height, width) if name in channels else (height, width)
        dtype = torch.int64 if name == "class" else torch.float32
        return torch.full(shape, _none(name), dtype=dtype, device=self.device)

    def _encoders(self, sources: Sequence[Tensor], y: int, x: int) -> list[_Encoder]:
        """The sources' encoders over the cell at (y, x) of the tile, zeros beyond the tile's end."""
        encoders = []
        for source, branch in zip(sources, self.folded.branches, strict=True):
            scale = branch.scale
            side = (CELL + 2 * self.spec.halo) * scale
            window = source[:, y * scale : y * scale + side, x * scale : x * scale + side]
            window = F.pad(window, (0, side - window.shape[2], 0, side - window.shape[1]))
            window = F.pixel_unshuffle(window.to(self.device), scale)  # (C, n, n)
            encoders.append(_Encoder(window.permute(1, 2, 0).contiguous(), branch, self.spec.patch, self.rows, self.dtype))
        return encoders

    def _belief(self, features: Sequence[Tensor], *, code: bool) -> Belief:
        """The network behind the branches, on N x (P, q, q, 64); mean and std of the code only where asked for."""
        net = self.folded
        patches, q = features[0].shape[:2]
        weights = _pointwise(torch.cat(list(features), dim=-1), net.gate).view(patches, q, q, -1, FEATURES)
        gates = shares(weights, dim=3)  # N x (P, q, q, 64)
        gated = [(feature * gate).permute(0, 3, 1, 2) for feature, gate in zip(features, gates, strict=True)]
        products = [small_products(gated[i], gated[j]).permute(0, 2, 3, 1) for i, j in combinations(range(len(gated)), 2)]
        relation = _pointwise(torch.cat(products, dim=-1), net.relation)
        refined = [_convolution(x, layer, padding=1) for x, layer in zip(features, net.refine, strict=True)]
        joined = _pointwise(torch.cat([refined[0], relation, *refined[1:]], dim=-1).relu_(), net.join).relu_()
        hidden = F.linear(joined.flatten(1, 2).mean(dim=1, dtype=torch.float32), *net.hidden).relu_()
        gate = torch.stack([gate.float().mean(dim=(1, 2, 3)) for gate in gates], dim=1)
        if not code:
            return Belief(F.linear(hidden, *net.logits), gate, None, None)
        mean = F.linear(hidden, *net.mean)
        return Belief(F.linear(mean, *net.decoder), gate, mean, deviation(F.linear(hidden, *net.spread)))


class _Encoder:
    """One source's branch over one cell: what patches share is computed at once, the features by rows."""

    def __init__(self, window: Tensor, branch: FoldedBranch, patch: int, rows: int, dtype: torch.dtype) -> None:
        self.patch, self.rows, self.branch = patch, rows, branch
        side = window.shape[0]
        taps = _pointwise(window, branch.taps).view(side, side, 3, 3, -1)
        #: (.., .., L) each, by the row's and the column's position in the patch: first, between, last.
        self.maps = [
            [_pointwise(sums.relu_(), branch.spectral).relu_() for sums in _by_position(row, 1, patch)]
            for row in _by_position(taps, 0, patch)
        ]
        self.attention = self._attention()  # (CELL, CELL, 1, 1, L)
        inner = self.attention.shape[-1]
        # The first row and column stay zero: the padding of the patch's second convolution.
        self.gathered = torch.zeros(rows, CELL, patch + 1, patch + 1, inner, dtype=dtype, device=window.device)

    def _attention(self) -> Tensor:
        """The weights of every patch's channels, from its mean over the nine maps."""
        (a, b, c), (d, e, f), (g, h, i) = self.maps
        reach = self.patch - 2
        total = _box(_box(e, 1, reach).add_(d).add_(f), 0, reach).add_(_box(b.float().add(h), 1, reach))
        total.add_(a).add_(c).add_(g).add_(i)
        squeezed = F.linear(total / self.patch**2, self.branch.squeeze).relu_()
        return F.linear(squeezed, self.branch.excite).sigmoid_()[:, :, None, None]

    def features(self, row: int) -> Tensor:
        """The branch's output for the patches of some rows of the cell, from `row` on: (P, q, q, 64)."""
        p, q = self.patch, self.patch // 2
        weights = self.attention[row : row + self.rows]
        spans = ((0, 1), (1, p - 1), (p - 1, p))
        for (top, bottom), maps in zip(spans, self.maps, strict=True):
            for (left, right), values in zip(spans, maps, strict=True):
                height, width = bottom - top, right - left
                windows = values[row : row + self.rows + height - 1].unfold(0, height, 1).unfold(1, width, 1)
                target = self.gathered[:, :, 1 + top : 1 + bottom, 1 + left : 1 + right]
                torch.mul(windows.permute(0, 1, 3, 4, 2), weights, out=target)
        full = _convolution(self.gathered.flatten(0, 1), self.branch.features, padding=0)  # (P, p - 1, p - 1, 64)
        pairs = full.view(-1, q, 2, q, 2, FEATURES)
        rows = torch.maximum(pairs[:, :, 0], pairs[:, :, 1])
        return torch.maximum(rows[:, :, :, 0], rows[:, :, :, 1]).relu_()


def _by_position(taps: Tensor, axis: int, patch: int) -> list[Tensor]:
    """Sums over the three taps of an axis, for pixels first, between and last in a patch along it.

    The taps are axis 2. A pixel takes the taps that fall inside its patch. What comes out has along `axis` the pixels
    that have that position in a patch of the cell, and no axis of taps.
    """
    before, at, after = taps.unbind(dim=2)
    side = taps.shape[axis]
    core, inner, last = side - patch + 1, side - 2, patch - 1
    return [
        at.narrow(axis, 0, core) + after.narrow(axis, 1, core),
        (before.narrow(axis, 0, inner) + at.narrow(axis, 1, inner)).add_(after.narrow(axis, 2, inner)),
        before.narrow(axis, last - 1, core) + at.narrow(axis, last, core),
    ]


def _box(x: Tensor, axis: int, reach: int) -> Tensor:
    """Sums over `reach` neighbours along an axis, in float32."""
    size = x.shape[axis] - reach + 1
    total = x.narrow(axis, 0, size).to(torch.float32, copy=True)
    for start in range(1, reach):
        total += x.narrow(axis, start, size)
    return total


def _pointwise(x: Tensor, layer: Layer) -> Tensor:
    """A 1x1 convolution over the last axis: (.., .., [..,] K) -> (.., .., [..,] L)."""
    flat = x.reshape(1, x.shape[0], -1, x.shape[-1])
    return F.conv2d(flat.permute(0, 3, 1, 2), *layer)[0].permute(1, 2, 0).reshape(*x.shape[:-1], -1)


def _convolution(x: Tensor, layer: Layer, *, padding: int) -> Tensor:
    """A 3x3 convolution, channels last: (P, rows, columns, K) -> (P, .., .., 64)."""
    return F.conv2d(x.permute(0, 3, 1, 2), *layer, padding=padding).permute(0, 2, 3, 1)


def _none(name: str) -> float:
    """What a pixel without a result has."""
    return -1 if name == "class" else float("nan")


def _checked(source: Tensor, valid: Tensor | None, spec: SourceSpec) -> Tensor:
    """A source's tile with zeros where data are not valid.

    Raises:
        InputError: a value is not finite where data are valid.
    """
    if valid is not None:
        fine = valid.to(source.device).repeat_interleave(spec.scale, 0).repeat_interleave(spec.scale, 1)
        source = torch.where(fine, source, 0.0)
    finite = torch.isfinite(source)
    if not finite.all():
        band, row, column = torch.nonzero(~finite)[0].tolist()
        raise InputError(
            f"source {spec.name!r} has {float(source[band, row, column])} in band {band + 1}, row {row}, column {column} "
            f"of the tile with its halo ({int((~finite).sum())} such values, finite ones wanted); "
            "fill them, or tell where data are valid."
        )
    return source


def rows_within_budget(spec: NetworkSpec, dtype: torch.dtype, budget: int) -> int:
    """Rows of a cell that are in work at a time: a divisor of `CELL`, the most whose patches fit the budget."""
    p, q = spec.patch, spec.patch // 2
    inner = sum(source.widths[1] for source in spec.sources)
    pairs = len(spec.sources) * (len(spec.sources) - 1) // 2
    gathered = (p + 1) ** 2 * inner + (p - 1) ** 2 * FEATURES * 2
    after = q * q * (FEATURES * (6 * len(spec.sources) + 3 * pairs) + 5 * HIDDEN)
    patches = budget // ((gathered + after) * dtype.itemsize)
    return max(rows for rows in range(1, CELL + 1) if CELL % rows == 0 and (rows == 1 or rows * CELL <= patches))
