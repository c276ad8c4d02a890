"""Inference for every pixel of a cell: source windows with halo to logits. Torch alone.

The one entry is `cell_logits`. It evaluates the network on every pixel's patch, `ROWS` rows of the
cell at a time, in batches whose shape depends on the cell alone: a pixel's result is bit for bit the
same whatever tile, worker or neighbour it is computed with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.precision import Precision, autocast

#: Side of a cell in pixels: the fixed-size square that is computed at a time.
CELL = 64
#: Rows of a cell in one batch: CELL * ROWS patches bound the memory.
ROWS = 16


@torch.inference_mode()
def cell_logits(network: MIBFNet, sources: Sequence[Tensor], *, precision: Precision = "float32") -> Tensor:
    """Logits of every pixel of one cell: (classes, CELL, CELL), float32.

    Args:
        network: in evaluation mode.
        sources: a tensor (C, CELL + 2h, CELL + 2h) a source, scaled, with h = patch // 2.
        precision: arithmetic of the forward pass.

    Raises:
        InputError: a window's shape is not that of a cell with its halo.

    >>> from mibf.spec import NetworkSpec, SourceSpec
    >>> spec = NetworkSpec((SourceSpec("optical", 4), SourceSpec("sar", 2)), classes=3)
    >>> network = MIBFNet(spec).eval()
    >>> side = CELL + 2 * spec.halo
    >>> cell_logits(network, [torch.rand(4, side, side), torch.rand(2, side, side)]).shape
    torch.Size([3, 64, 64])
    """
    spec = network.spec
    side = CELL + 2 * spec.halo
    found = [tuple(x.shape) for x in sources]
    wanted = [(source.bands, side, side) for source in spec.sources]
    if found != wanted:
        raise InputError(f"windows of {found} given; a cell of {CELL} pixels with halo {spec.halo} wants {wanted}.")
    if network.training:
        raise ValueError("the network is in training mode; call network.eval() first")
    device = next(network.parameters()).device
    patches = [_patches(x.to(device), spec.patch) for x in sources]
    logits = torch.empty(CELL, CELL, spec.classes, device=device)
    with autocast(device, precision):
        for row in range(0, CELL, ROWS):
            rows = slice(row, row + ROWS)
            # (ROWS, CELL, p, p, C) copied to (B, p, p, C), seen as (B, C, p, p): channels last
            batch = [x[rows].reshape(ROWS * CELL, *x.shape[2:]).permute(0, 3, 1, 2) for x in patches]
            logits[rows] = network(batch).logits.view(ROWS, CELL, spec.classes)
    return logits.permute(2, 0, 1)


def _patches(window: Tensor, patch: int) -> Tensor:
    """Every pixel's patch as a view: (C, H + 2h, W + 2h) -> (H, W, p, p, C)."""
    last = window.permute(1, 2, 0).contiguous()
    return last.unfold(0, patch, 1).unfold(1, patch, 1).permute(0, 1, 3, 4, 2)
