"""Exact inference for every pixel of a tile, without computing every patch separately. Torch only.

`Dense` is the only entry point. Each pixel's result is that of `MIBFNet` on the patch around it; what neighbouring
patches share is computed once (see `mibf.inference.cell`).

A tile is processed in cells of `CELL` x `CELL` pixels counted from its first pixel, and each cell some rows at a time.
All shapes depend only on network and device: a pixel's result is bit-identical in whatever tile it lies, as long as
tiles begin at a cell's corner. On a CPU every core computes a separate cell, so results do not depend on the number of
cores either; memory is about 40 MB per core with 64 bands, whatever the tile size. A GPU computes many cells with each
operation, always the same number: what is missing at the end of a tile is filled up with cells whose results are dropped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from mibf.device import DTYPES, Precision, check_precision, ieee_float32
from mibf.errors import InputError
from mibf.inference import gpu_kernels
from mibf.inference.batchnorm_folding import FoldedBranch, FoldedNetwork
from mibf.inference.cell import (
    CELL,
    CellEncoder,
    FilteringEncoder,
    FusedEncoder,
    centre_change,
    forward_from_features,
    rows_within_budget,
)
from mibf.inference.outputs import RANKED, OutputDecoder, ProductName, check_products, standard_draws
from mibf.inference.thread_pool import parallel_for
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import HIDDEN, NetworkSpec, SourceSpec, check_shapes

#: Bytes that the rows of a cell processed at a time may take, by device type; at least one row is processed.
BUDGET = {"cpu": 32 << 20, "cuda": 2 << 30}
#: Cells that are computed together, by device type.
CELLS = {"cpu": 1, "cuda": 16}
#: Default number of Monte Carlo samples of the code, for `mutual_information`.
MC_SAMPLES = 16


class Dense:
    """A trained network prepared to classify entire tiles; its weights are copied on construction.

    Args:
        network: in evaluation mode, on the device to compute on.
        precision: of the per-patch convolutions; what patches share and the bottleneck always use float32. "fp16", for GPUs
            alone, has a small range: values beyond it are an error.
        temperature: divisor of the logits before the softmax; stored in the bundle.
        mc_samples: number of Monte Carlo samples of the code, for `mutual_information`.
        seed: of these samples.
        budget: bytes that the rows of the cells processed at a time may take, at least one row of each; default `BUDGET`.
            The feature maps, about 25 MB per cell with 64 bands, are additional, and on a CPU every core processes a
            cell. Results are bit-identical only for the same budget.
        cells: number of cells that are computed together; default `CELLS`. Results are bit-identical only for the same
            number.
        kernels: whether to use kernels of a GPU or vector code of a CPU where they are available, which is much faster;
            otherwise torch's operations compute everything. Results are equal up to rounding.

    Raises:
        InputError: the network is in training mode, a weight is not finite, or an argument is invalid.

    >>> from mibf.network.spec import NetworkSpec, SourceSpec
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
        mc_samples: int = MC_SAMPLES,
        seed: int = 0,
        budget: int | None = None,
        cells: int | None = None,
        kernels: bool = True,
    ) -> None:
        if network.training:
            raise InputError("the network is in training mode, where results are random; call network.eval() first.")
        for name, weight in network.state_dict().items():
            if not torch.isfinite(weight).all():
                raise InputError(f"weight {name} of the network is not finite; use an earlier checkpoint, or retrain.")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature is {temperature}; it must be a positive number (1 changes nothing).")
        if mc_samples < 2:
            raise InputError(f"mc_samples is {mc_samples}; mutual information needs at least two samples of the code.")
        if precision not in DTYPES:
            raise InputError(f"precision is {precision!r}; it must be one of {', '.join(DTYPES)}.")
        self.spec: NetworkSpec = network.spec
        self.device = next(network.parameters()).device
        check_precision(self.device, precision, key="precision")
        self.dtype = DTYPES[precision]
        self.folded = FoldedNetwork.of(network, device=self.device, dtype=self.dtype, filtering=kernels)
        noise = standard_draws(mc_samples, HIDDEN, seed=seed).to(self.device)
        self.decoder = OutputDecoder(self.folded.decoder.weight.flatten(1), noise, temperature)
        self.cells = CELLS[self.device.type] if cells is None else cells
        if self.cells < 1:
            raise InputError(f"cells is {cells}; at least one is computed at a time.")
        budget = BUDGET[self.device.type] if budget is None else budget
        widths = [width for source in self.spec.sources for width in source.widths]
        #: Whether GPU kernels compute the branches and the relation.
        self.kernels = kernels and gpu_kernels.are_available(self.device, widths)
        gathered = not self.kernels and any(branch.filtering is None for branch in self.folded.branches)
        self.rows = rows_within_budget(self.spec, self.dtype, budget, cells=self.cells, gathered=gathered)

    def with_rows(self, rows: int) -> Dense:
        """Return the same network with another number of rows of a cell processed at a time; fewer use less memory.

        The number of cells computed together becomes smaller by the same factor, at least one. Arithmetic on other shapes
        may round differently: results are bit-identical only for the same number of rows.

        Raises:
            InputError: the number does not divide `CELL`.
        """
        if rows < 1 or CELL % rows:
            raise InputError(f"rows is {rows}; it must be a divisor of {CELL}.")
        other = copy.copy(self)
        other.rows, other.cells = rows, max(1, min(self.cells, self.cells * rows // self.rows))
        return other

    def __call__(
        self,
        sources: Sequence[Tensor],
        *,
        products: Collection[ProductName] = ("class", "confidence"),
        valid: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> dict[ProductName, Tensor]:
        """Compute the products of every pixel of a tile.

        Args:
            sources: one tensor (C, (H + 2 halo) scale, (W + 2 halo) scale) per source, scaled to [0, 1], float32.
            products: names from `mibf.inference.outputs.PRODUCT_NAMES`.
            valid: bool (H + 2 halo, W + 2 halo), True where there are data; default everywhere. Other values are not
                read: they count as 0 in the patches that contain them.
            wanted: bool (H, W), the pixels to classify; default the valid ones.

        Returns:
            Per product (H, W), or (channels, H, W) for `probabilities`, `gate` and `logits`, on the network's device;
            `class` and `second_class` are int64, the others float32. Pixels that are not wanted are -1 in `class` and
            `second_class`, NaN in the others.

        Raises:
            InputError: the number of sources, bands or pixels does not match the spec, values are not float32, a value
                is not finite where data are valid, or a product is unknown or needs a bottleneck that the network lacks; or
            values overflow float16.
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
        corners = [
            (y, x) for y in range(0, height, CELL) for x in range(0, width, CELL) if wanted[y : y + CELL, x : x + CELL].any()
        ]
        groups = [corners[start : start + self.cells] for start in range(0, len(corners), self.cells)]
        results = {name: self._empty(name, height, width) for name in products}
        overflows: list[Tensor] = []
        with ieee_float32(self.device, deterministic=True):
            if self.device.type == "cpu":
                tile = _Tile(sources, valid, wanted, results, overflows)
                parallel_for(partial(self._compute, tile), groups)
            elif groups:
                tile = _Tile(self._placed(sources, valid, height, width), None, wanted, results, overflows)
                for group in groups:
                    self._compute(tile, group)
        if overflows and torch.stack(overflows).any():
            raise InputError("values overflow float16 in the network; use precision bf16 or float32.")
        unwanted = ~wanted.to(self.device)
        for name, values in results.items():
            values.masked_fill_(unwanted, _none(name))
        return results

    @torch.inference_mode()
    def _compute(self, tile: _Tile, corners: Sequence[tuple[int, int]]) -> None:
        """Fill the results of some cells, given by their first pixels (y, x): some rows at a time, those with wanted pixels.

        Fewer cells than are always computed together are filled up by repeating the last one.
        """
        filled = [*corners, *repeat(corners[-1], self.cells - len(corners))]
        windows, centre, change = self._windows(tile, filled), self.folded.centre, None
        encoders = [
            self._encoder(branch)(window, branch, self.spec.patch, self.rows, self.dtype)
            for window, branch in zip(windows, self.folded.branches, strict=True)
        ]
        if centre is not None:
            change = centre_change(centre, windows, self.spec.patch)
        del windows  # they are no longer needed while rows are computed, which takes the most memory
        for row in range(0, CELL, self.rows):
            spans = [(slice(y + row, y + row + self.rows), slice(x, x + CELL)) for y, x in corners]
            if not any(tile.wanted[span].any() for span in spans):
                continue
            outputs = forward_from_features(
                self.folded,
                [encoder.features(row) for encoder in encoders],
                tuple(tile.results),
                change=None if change is None else change[:, row : row + self.rows].flatten(0, 2),
                kernels=self.kernels,
            )
            if self.dtype == torch.float16:
                # Read once a tile, so that the host does not wait for a group. Zero times infinity is NaN.
                tile.overflows.append((outputs.logits * 0).sum() != 0)
            for name, result in tile.results.items():
                values = self.decoder.product(name, outputs).view(self.cells, self.rows, CELL, -1).permute(0, 3, 1, 2)
                for (down, across), of_cell in zip(spans, values, strict=False):  # those filled up are dropped
                    part = result[..., down, across]
                    part.copy_(of_cell[:, : part.shape[-2], : part.shape[-1]].view_as(part))

    def _encoder(self, branch: FoldedBranch) -> type[CellEncoder | FusedEncoder]:
        """Return what computes a branch."""
        if self.kernels:
            return FusedEncoder
        return CellEncoder if branch.filtering is None else FilteringEncoder

    def _tile_shape(self, sources: Sequence[Tensor]) -> tuple[int, int]:
        """Return the tile's rows and columns without its halo, from the first source; check the others against it."""
        for x, source in zip(sources, self.spec.sources, strict=False):  # their number is checked below
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            if kind != torch.float32:
                raise InputError(f"source {source.name!r} is {kind}; the network needs a float32 tensor, scaled to [0, 1].")
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

    def _windows(self, tile: _Tile, corners: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Cut the sources' windows of the cells at (y, x) of the tile, with their halo: N x (G, n, n, C)."""
        side = CELL + 2 * self.spec.halo
        if self.device.type == "cpu":
            return [
                torch.stack(
                    [
                        _window(values, tile.valid, source, y=y, x=x, rows=side, columns=side).permute(1, 2, 0)
                        for y, x in corners
                    ]
                )
                for values, source in zip(tile.sources, self.spec.sources, strict=True)
            ]
        return [torch.stack([values[y : y + side, x : x + side] for y, x in corners]) for values in tile.sources]

    def _placed(self, sources: Sequence[Tensor], valid: Tensor | None, height: int, width: int) -> list[Tensor]:
        """Copy an entire tile to the device, filled up to a multiple of cells: N x (rows, columns, C)."""
        rows, columns = (-(-length // CELL) * CELL + 2 * self.spec.halo for length in (height, width))
        valid = None if valid is None else valid.to(self.device)
        return [
            _window(values.to(self.device), valid, source, y=0, x=0, rows=rows, columns=columns)
            .permute(1, 2, 0)
            .contiguous()
            for values, source in zip(sources, self.spec.sources, strict=True)
        ]


@dataclass(frozen=True)
class _Tile:
    """A tile's inputs, wanted pixels and results."""

    sources: Sequence[Tensor]  #: on a GPU as `_placed` returns them
    valid: Tensor | None
    wanted: Tensor  #: bool (H, W), on the CPU
    results: dict[ProductName, Tensor]
    overflows: list[Tensor]  #: in float16, whether a logit is not finite, for each group of rows


def _check_mask(name: str, mask: Tensor, shape: tuple[int, int]) -> None:
    """Check that a mask is a bool tensor of the expected shape (rows, columns).

    Raises:
        InputError: it is not.
    """
    kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
    if kind != torch.bool:
        raise InputError(f"the {name} is {kind}; it must be a bool tensor.")
    if tuple(mask.shape) != shape:
        raise InputError(
            f"the {name} is {' x '.join(map(str, mask.shape))}; it must be {shape[0]} x {shape[1]} (rows x columns)."
        )


def _none(name: str) -> float:
    """Value of a pixel without a result."""
    return -1 if name in RANKED else float("nan")


def _window(source: Tensor, valid: Tensor | None, spec: SourceSpec, *, y: int, x: int, rows: int, columns: int) -> Tensor:
    """Cut a rectangle of reference pixels, which include the halo, from a tile at (y, x): (C, rows, columns).

    Zero where data are not valid and beyond the tile's edge; a finer source's pixels become channels.

    Raises:
        InputError: a value is not finite where data are valid.
    """
    scale = spec.scale
    window = source[:, y * scale : (y + rows) * scale, x * scale : (x + columns) * scale]
    if valid is not None:
        fine = valid[y : y + rows, x : x + columns].to(source.device)
        window = torch.where(fine.repeat_interleave(scale, 0).repeat_interleave(scale, 1), window, 0.0)
    # Check the sum first: it is finite in the normal case, and takes a tenth of the time of checking each value.
    if not torch.isfinite(window.sum()) and not (finite := torch.isfinite(window)).all():
        band, row, column = torch.nonzero(~finite)[0].tolist()
        raise InputError(
            f"source {spec.name!r} has {float(window[band, row, column])} in band {band + 1}, row {y * scale + row}, "
            f"column {x * scale + column} of the tile with its halo; fill such values, or mark them as not valid."
        )
    window = F.pad(window, (0, columns * scale - window.shape[2], 0, rows * scale - window.shape[1]))
    return F.pixel_unshuffle(window, scale)
