"""GPU kernels for dense inference, each in place of many tensor operations. Torch and Triton only.

With tensor operations, most time goes to writing intermediate values to memory and reading them again: the taps of the first
convolution, and above all the patches. Each kernel here reads what it needs from the cache and keeps the rest in
registers:

- `nine_maps`: first convolution and second layer at every pixel, for each of its nine positions in a patch;
- `channel_weights`: the channel attention of every patch, from its mean over the nine maps;
- `pooled_features`: the patches, gathered and weighted, their 3x3 convolution, and the pooling;
- `gated_products`: two sources' features, gated, and their small matrix products.

The same values as `mibf.inference.cell` computes without them, up to rounding. Products of float32 matrices are made of
three TF32 products each, which keeps 21 of 24 bits, so that tensor cores compute them.

Triton is part of torch's CUDA builds. Without it, and for widths other than powers of two, `are_available` is False
and tensor operations do all the work.

Legend for shapes: G cells, n side of a cell's window, S pixels of a cell's nine maps with the zeros, C channels of a source,
K and L inner widths of its branch, P patches, p patch side, q = p // 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mibf.network.spec import FEATURES

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without it
    triton = None

# Pixels or patches of a program, and the number of its warps and stages: the fastest of those tried on an H200.
MAPS = (32, 4, 3)
WEIGHTS = (16, 4, 3)
#: By dtype; the last number is that of taps per pass of the loop.
PATCHES = {torch.bfloat16: (32, 4, 3, 9), torch.float16: (32, 4, 3, 9), torch.float32: (32, 4, 1, 1)}
PRODUCTS = (32, 4, 1)
#: Channels that are read at a time.
CHANNELS = 32


def are_available(device: torch.device, widths: Sequence[int]) -> bool:
    """Whether the kernels can compute branches of these widths on a device."""
    return triton is not None and device.type == "cuda" and all(width >= 16 and width.bit_count() == 1 for width in widths)


def nine_maps(
    windows: Tensor, taps: Tensor, bias: Tensor, spectral: Tensor, spectral_bias: Tensor, *, patch: int, dtype: torch.dtype
) -> Tensor:
    """Compute the pixels of the nine maps of every cell, one map after the other, then a pixel of zeros: (G, S, L).

    Args:
        windows: (G, n, n, C), float32.
        taps: weights of the first convolution, (9, C, K).
        bias: of the first convolution, (K,).
        spectral: weights of the second layer, (K, L).
        spectral_bias: of the second layer, (L,).
        patch: its side p.
        dtype: of the result.
    """
    cells, side, _, channels = windows.shape
    inner, outer = spectral.shape
    spans = ((0, side - patch + 1), (1, side - 2), (patch - 1, side - patch + 1))
    size = sum(down * across for _, down in spans for _, across in spans) + 1
    pixels = torch.empty(cells, size, outer, dtype=dtype, device=windows.device)
    pixels[:, -1] = 0
    block, warps, stages = MAPS
    start = 0
    for i, (top, down) in enumerate(spans):
        for j, (left, across) in enumerate(spans):
            _nine_maps[(triton.cdiv(down * across, block), cells)](
                windows, taps, bias, spectral, spectral_bias, pixels, side, size, start, top, left, down, across,
                int(i == 0), 1 + int(i < 2), int(j == 0), 1 + int(j < 2),
                channels=channels, inner=inner, outer=outer, block=block, step=CHANNELS, num_warps=warps, num_stages=stages,
            )  # fmt: skip  # arguments in groups that belong together
            start += down * across
    return pixels


def channel_weights(pixels: Tensor, places: Tensor, squeeze: Tensor, excite: Tensor, *, patch: int) -> Tensor:
    """Compute the channel weights of every patch, (G * CELL * CELL, L), in the dtype of the pixels.

    Args:
        pixels: from `nine_maps`.
        places: indices of every patch's pixels into those of one cell, (CELL * CELL, (p + 1) ** 2), int32.
        squeeze: (L / 16, L), float32.
        excite: (L, L / 16), float32.
        patch: its side p.
    """
    cells, size, outer = pixels.shape
    of_cell, count = places.shape
    weights = pixels.new_empty(cells * of_cell, outer)
    block, warps, stages = WEIGHTS
    _channel_weights[(cells * of_cell // block,)](
        pixels, places, squeeze, excite, weights, size, of_cell,
        outer=outer, squeezed=squeeze.shape[0], count=count, area=patch**2, block=block, num_warps=warps, num_stages=stages,
    )  # fmt: skip  # arguments in groups that belong together
    return weights


def pooled_features(
    pixels: Tensor, places: Tensor, weights: Tensor, convolution: Tensor, bias: Tensor, *, first: int, patches: int
) -> Tensor:
    """Compute a branch's output for some patches of every cell: (P, q, q, 64).

    Args:
        pixels: from `nine_maps`.
        places: as for `channel_weights`.
        weights: from `channel_weights`.
        convolution: weights of the 3x3 convolution, (9, L, 64).
        bias: (64,).
        first: first patch of every cell.
        patches: number of patches of every cell.
    """
    cells, size, outer = pixels.shape
    of_cell, count = places.shape
    width = round(count**0.5)
    q = width // 2 - 1
    features = pixels.new_empty(cells * patches, q, q, FEATURES)
    block, warps, stages, unroll = PATCHES[pixels.dtype]
    _pooled_features[(q * q, cells * patches // block)](
        pixels, places, weights, convolution, bias, features, size, first, patches, of_cell,
        outer=outer, features=FEATURES, q=q, width=width, block=block, unroll=unroll, num_warps=warps, num_stages=stages,
    )  # fmt: skip  # arguments in groups that belong together
    return features


def gated_products(left: Tensor, right: Tensor, left_gate: Tensor, right_gate: Tensor) -> Tensor:
    """Multiply two sources' features by their gates, then the q x q matrices of each channel: all (P, q, q, 64)."""
    count, q = left.shape[:2]
    products = torch.empty_like(left)
    block, warps, stages = PRODUCTS
    _gated_products[(q * q, triton.cdiv(count, block))](
        left, right, left_gate, right_gate, products, count, left_gate.stride(2), right_gate.stride(2),
        features=FEATURES, q=q, block=block, num_warps=warps, num_stages=stages,
    )  # fmt: skip  # arguments in groups that belong together
    return products


if triton is not None:
    # One kernel for all maps: Triton would otherwise compile others for numbers that are 1 or multiples of 16.
    @triton.jit(do_not_specialize=["start", "top", "left", "down", "across", "above", "below", "before", "after"])
    def _nine_maps(
        windows, taps, bias, spectral, spectral_bias, pixels, side, size, start, top, left, down, across,
        above, below, before, after,
        channels: tl.constexpr, inner: tl.constexpr, outer: tl.constexpr, block: tl.constexpr, step: tl.constexpr,
    ):  # fmt: skip  # arguments in groups that belong together
        """Compute some pixels of one map, with the taps of rows `above` to `below` and columns `before` to `after`."""
        cell = tl.program_id(1)
        pixel = tl.program_id(0) * block + tl.arange(0, block)
        inside = pixel < down * across
        corner = (cell * side + top + pixel // across) * side + left + pixel % across
        channel, width, target = tl.arange(0, step), tl.arange(0, inner), tl.arange(0, outer)
        total = tl.zeros((block, inner), dtype=tl.float32)
        for tap in range(9):
            if (tap // 3 >= above) & (tap // 3 <= below) & (tap % 3 >= before) & (tap % 3 <= after):
                place = (corner + (tap // 3 - 1) * side + tap % 3 - 1) * channels
                for base in range(0, channels, step):
                    known = base + channel < channels
                    values = tl.load(
                        windows + place[:, None] + base + channel[None, :], mask=inside[:, None] & known[None, :], other=0.0
                    )
                    of_tap = tl.load(
                        taps + (tap * channels + base + channel)[:, None] * inner + width[None, :],
                        mask=known[:, None],
                        other=0.0,
                    )
                    total = tl.dot(values, of_tap, total, input_precision="tf32x3")
        hidden = tl.maximum(total + tl.load(bias + width)[None, :], 0.0)
        second = tl.load(spectral + width[:, None] * outer + target[None, :])
        values = tl.dot(hidden, second, input_precision="tf32x3") + tl.load(spectral_bias + target)[None, :]
        tl.store(
            pixels + (cell * size + start + pixel)[:, None] * outer + target[None, :],
            tl.maximum(values, 0.0).to(pixels.dtype.element_ty),
            mask=inside[:, None],
        )

    @triton.jit
    def _channel_weights(
        pixels, places, squeeze, excite, weights, size, of_cell,
        outer: tl.constexpr, squeezed: tl.constexpr, count: tl.constexpr, area: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip  # arguments in groups that belong together
        """Compute the channel weights of some patches."""
        patch = tl.program_id(0) * block + tl.arange(0, block)
        cell, within = patch // of_cell, patch % of_cell
        channel = tl.arange(0, outer)
        total = tl.zeros((block, outer), dtype=tl.float32)
        for k in range(count):
            place = tl.load(places + within * count + k)
            total += tl.load(pixels + (cell * size + place)[:, None] * outer + channel[None, :]).to(tl.float32)
        mean = total / area
        logits = tl.zeros((block, outer), dtype=tl.float32)
        for r in tl.static_range(squeezed):
            hidden = tl.maximum(tl.sum(mean * tl.load(squeeze + r * outer + channel)[None, :], axis=1), 0.0)
            logits += hidden[:, None] * tl.load(excite + channel * squeezed + r)[None, :]
        values = 1 / (1 + tl.exp(-logits))
        tl.store(weights + patch[:, None] * outer + channel[None, :], values.to(weights.dtype.element_ty))

    @triton.jit
    def _pooled_features(
        pixels, places, weights, convolution, bias, out, size, first, patches, of_cell,
        outer: tl.constexpr, features: tl.constexpr, q: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
        unroll: tl.constexpr,
    ):  # fmt: skip  # arguments in groups that belong together
        """Compute one of the q x q pooled outputs of some patches, each the maximum of four outputs of the convolution."""
        pool, number = tl.program_id(0), tl.program_id(1) * block
        line = tl.arange(0, 4 * block)
        patch, corner = number + line // 4, line % 4
        cell, within = patch // patches, first + patch % patches
        # The convolution's first tap for this output, in the patch with its padding.
        tap = (2 * (pool // q) + corner // 2) * width + 2 * (pool % q) + corner % 2
        channel, feature = tl.arange(0, outer), tl.arange(0, features)
        weighing = tl.load(weights + (cell * of_cell + within)[:, None] * outer + channel[None, :])
        total = tl.zeros((4 * block, features), dtype=tl.float32)
        for step in tl.range(9, loop_unroll_factor=unroll):
            place = tl.load(places + within * (width * width) + tap + (step // 3) * width + step % 3)
            values = tl.load(pixels + (cell * size + place)[:, None] * outer + channel[None, :])
            of_tap = tl.load(convolution + (step * outer + channel)[:, None] * features + feature[None, :])
            total = tl.dot(values * weighing, of_tap, total, input_precision="tf32x3")
        pooled = tl.max(tl.reshape(total, (block, 4, features)), axis=1)
        pooled = tl.maximum(pooled + tl.load(bias + feature)[None, :].to(tl.float32), 0.0)
        target = (number + tl.arange(0, block)) * (q * q) + pool
        tl.store(out + target[:, None] * features + feature[None, :], pooled.to(out.dtype.element_ty))

    @triton.jit
    def _gated_products(
        left, right, left_gate, right_gate, products, count, left_stride, right_stride,
        features: tl.constexpr, q: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip  # arguments in groups that belong together
        """Compute one of the q x q values of the products of some patches."""
        row, column = tl.program_id(0) // q, tl.program_id(0) % q
        patch = tl.program_id(1) * block + tl.arange(0, block)
        feature = tl.arange(0, features)
        inside = (patch < count)[:, None] & (feature < features)[None, :]
        total = tl.zeros((block, features), dtype=tl.float32)
        for k in tl.static_range(q):
            here = patch[:, None] * (q * q) + row * q + k
            there = patch[:, None] * (q * q) + k * q + column
            first = tl.load(left + here * features + feature[None, :], mask=inside)
            first *= tl.load(left_gate + here * left_stride + feature[None, :], mask=inside)
            second = tl.load(right + there * features + feature[None, :], mask=inside)
            second *= tl.load(right_gate + there * right_stride + feature[None, :], mask=inside)
            total += first.to(tl.float32) * second.to(tl.float32)
        here = patch[:, None] * (q * q) + row * q + column
        tl.store(products + here * features + feature[None, :], total.to(products.dtype.element_ty), mask=inside)
