"""Exact inference for every pixel of a tile, without computing every patch alone. Torch alone.

`Dense` is the one entry. Each pixel's result is that of `MIBFNet` on the patch around it; what neighbouring patches
have in common is computed once, as `mibf.cell` tells.

Work goes in cells of `CELL` x `CELL` pixels counted from the tile's first pixel, and in each some rows at a time. All
shapes depend on network and device alone: a pixel's result is bit for bit the same whatever tile holds it, as long
as tiles begin on a cell's corner. On a processor every core has a cell of its own, so that it is the same for any
number of cores too; memory is some 40 MB a core with 64 bands, whatever the tile's size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mibf.cell import CELL, Encoder, believe, rows_within_budget
from mibf.errors import InputError
from mibf.folded import FoldedNetwork
from mibf.network import MIBFNet
from mibf.precision import DTYPES, Precision, ieee_float32
from mibf.products import RANKED, Decoding, ProductName, check_products, standard_draws
from mibf.spec import HIDDEN, NetworkSpec, SourceSpec, check_shapes
from mibf.threads import side_by_side

#: Bytes that the rows in work of a cell may take, by type of device; at least one row is taken.
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
        budget: bytes that the rows in work of a cell may take, one row at least; `BUDGET` unless given. A cell's maps,
            some 25 MB with 64 bands, come on top, and on a processor every core has a cell in work. Bits are those
            of one budget.

    Raises:
        InputError: the network is in training mode, a weight is not finite, or an argument cannot be.

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
        budget: int | None = None,
    ) -> None:
        if network.training:
            raise InputError("the network is in training mode, in which results are drawn; call network.eval() first.")
        for name, weight in network.state_dict().items():
            if not torch.isfinite(weight).all():
                raise InputError(f"weight {name} of the network is not finite; take an earlier checkpoint, or train again.")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature is {temperature}; it must be a positive number (1 changes nothing).")
        if draws < 2:
            raise InputError(f"draws is {draws}; mutual information is over two draws of the code at least.")
        if precision not in DTYPES:
            raise InputError(f"precision is {precision!r}; there are {', '.join(DTYPES)}.")
        self.spec: NetworkSpec = network.spec
        self.device = next(network.parameters()).device
        self.dtype = DTYPES[precision]
        self.folded = FoldedNetwork.of(network, device=self.device, dtype=self.dtype)
        noise = standard_draws(draws, HIDDEN, seed=seed).to(self.device)
        self.decoding = Decoding(self.folded.decoder.weight.flatten(1), noise, temperature)
        self.rows = rows_within_budget(self.spec, self.dtype, BUDGET[self.device.type] if budget is None else budget)

    def with_rows(self, rows: int) -> Dense:
        """The same network with another number of rows of a cell in work at a time; fewer take less memory.

        Arithmetic of other shapes may round otherwise: bits are those of one number of rows.

        Raises:
            InputError: the number does not divide `CELL`.
        """
        if rows < 1 or CELL % rows:
            raise InputError(f"rows in work are {rows}; a divisor of {CELL} is wanted.")
        other = copy.copy(self)
        other.rows = rows
        return other

    def __call__(
        self,
        sources: Sequence[Tensor],
        *,
        products: Collection[ProductName] = ("class", "confidence"),
        valid: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> dict[ProductName, Tensor]:
        """The products of every pixel of a tile.

        Args:
            sources: a tensor (C, (H + 2 halo) scale, (W + 2 halo) scale) a source, scaled to [0, 1], float32.
            products: what is asked for, of `mibf.products.PRODUCT_NAMES`.
            valid: (H + 2 halo, W + 2 halo) of bool, where there are data; everywhere unless given. Values elsewhere
                are not read: they count as 0 in the patches that they touch.
            wanted: (H, W) of bool, the pixels to classify; the valid ones unless given.

        Returns:
            By product (H, W), or (channels, H, W) for `probabilities`, `gate` and `logits`, on the network's device;
            `class` and `second` are int64, the others float32. Pixels that are not wanted have class -1 and NaN.

        Raises:
            InputError: the number of sources, bands or pixels is not the spec's, values are not float32, one is not
                finite where data are valid, or a product is unknown or one that needs the bottleneck of a network
                without it.
        """
        products = check_products(products, without=self.spec.without)
        height, width = self._tile_shape(sources)
        halo = self.spec.halo
        if valid is not None:
            _check_mask("validity", valid, (height + 2 * halo, width + 2 * halo))
        if wanted is not None:
            _check_mask("mask of wanted pixels", wanted, (height, width))
        elif valid is not None:
            wanted = valid[halo:-halo, halo:-halo]
        else:
            wanted = torch.ones(height, width, dtype=torch.bool)
        wanted = wanted.cpu()
        tile = _Tile(sources, valid, wanted, {name: self._empty(name, height, width) for name in products})
        corners = [
            (y, x) for y in range(0, height, CELL) for x in range(0, width, CELL) if wanted[y : y + CELL, x : x + CELL].any()
        ]
        with ieee_float32(self.device):
            if self.device.type == "cpu":
                side_by_side(partial(self._cell, tile), corners)
            else:
                for corner in corners:
                    self._cell(tile, corner)
        for name, values in tile.results.items():
            values.masked_fill_(~wanted.to(self.device), _none(name))
        return tile.results

    @torch.inference_mode()
    def _cell(self, tile: _Tile, corner: tuple[int, int]) -> None:
        """Fill the results of the cell at (y, x), those rows in work at a time that hold a wanted pixel."""
        y, x = corner
        encoders = self._encoders(tile, y, x)
        for row in range(0, CELL, self.rows):
            span = slice(y + row, y + row + self.rows), slice(x, x + CELL)
            if not tile.wanted[span].any():
                continue
            belief = believe(self.folded, [encoder.features(row) for encoder in encoders], tuple(tile.results))
            for name, result in tile.results.items():
                part = result[..., span[0], span[1]]
                values = self.decoding.product(name, belief).view(self.rows, CELL, -1).permute(2, 0, 1)
                part.copy_(values[:, : part.shape[-2], : part.shape[-1]].view_as(part))

    def _tile_shape(self, sources: Sequence[Tensor]) -> tuple[int, int]:
        """Rows and columns of the tile without its halo, by the first source; the others are checked against it."""
        for x, source in zip(sources, self.spec.sources, strict=False):  # their number is checked below
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            if kind != torch.float32:
                raise InputError(
                    f"source {source.name!r} is {kind}; the network wants a tensor of float32, scaled to [0, 1]."
                )
        reach, scale = 2 * self.spec.halo, self.spec.sources[0].scale
        shape = sources[0].shape if len(sources) and sources[0].dim() == 3 else (0, 0, 0)
        rows, columns = max(shape[1] // scale, reach + 1), max(shape[2] // scale, reach + 1)
        check_shapes(self.spec, [tuple(x.shape) for x in sources], rows=rows, columns=columns)
        return rows - reach, columns - reach

    def _empty(self, name: ProductName, height: int, width: int) -> Tensor:
        channels = {"probabilities": self.spec.classes, "logits": self.spec.classes, "gate": len(self.spec.sources)}
        shape = (channels[name], height, width) if name in channels else (height, width)
        dtype = torch.int64 if name in RANKED else torch.float32
        return torch.full(shape, _none(name), dtype=dtype, device=self.device)

    def _encoders(self, tile: _Tile, y: int, x: int) -> list[Encoder]:
        """The sources' encoders over the cell at (y, x) of the tile."""
        patch = self.spec.patch
        windows = [
            _window(values, tile.valid, source, y=y, x=x, side=CELL + 2 * self.spec.halo)
            for values, source in zip(tile.sources, self.spec.sources, strict=True)
        ]
        return [
            Encoder(window.to(self.device).permute(1, 2, 0).contiguous(), branch, patch, self.rows, self.dtype)
            for window, branch in zip(windows, self.folded.branches, strict=True)
        ]


@dataclass(frozen=True)
class _Tile:
    """What is asked of a tile, and its results as they come."""

    sources: Sequence[Tensor]
    valid: Tensor | None
    wanted: Tensor  #: (H, W) of bool, on the CPU
    results: dict[ProductName, Tensor]


def _check_mask(name: str, mask: Tensor, shape: tuple[int, int]) -> None:
    """See that a mask is one, of the shape that is wanted (rows, columns).

    Raises:
        InputError: it is not.
    """
    kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
    if kind != torch.bool:
        raise InputError(f"the {name} is {kind}; a tensor of bool is wanted.")
    if tuple(mask.shape) != shape:
        raise InputError(
            f"the {name} is {' x '.join(map(str, mask.shape))}; it must be {shape[0]} x {shape[1]} (rows x columns)."
        )


def _none(name: str) -> float:
    """What a pixel without a result has."""
    return -1 if name in RANKED else float("nan")


def _window(source: Tensor, valid: Tensor | None, spec: SourceSpec, *, y: int, x: int, side: int) -> Tensor:
    """The square of a tile at (y, x), `side` reference pixels with its halo: (C, side, side).

    Zeros where data are not valid and beyond the tile's end; a finer source's pixels as channels.

    Raises:
        InputError: a value is not finite where data are valid.
    """
    scale = spec.scale
    window = source[:, y * scale : (y + side) * scale, x * scale : (x + side) * scale]
    if valid is not None:
        fine = valid[y : y + side, x : x + side].to(source.device)
        window = torch.where(fine.repeat_interleave(scale, 0).repeat_interleave(scale, 1), window, 0.0)
    # The sum first: it is finite where all is well, and takes a tenth of the time of asking each value.
    if not torch.isfinite(window.sum()) and not (finite := torch.isfinite(window)).all():
        band, row, column = torch.nonzero(~finite)[0].tolist()
        raise InputError(
            f"source {spec.name!r} has {float(window[band, row, column])} in band {band + 1}, row {y * scale + row}, "
            f"column {x * scale + column} of the tile with its halo; fill such values, or tell where data are valid."
        )
    window = F.pad(window, (0, side * scale - window.shape[2], 0, side * scale - window.shape[1]))
    return F.pixel_unshuffle(window, scale)
