"""The patches' second 3x3 convolution by Winograd's minimal filtering, as vector code for a CPU. Numba, numpy, torch only.

A window of the pooling is 2x2 outputs, which depend on a tile of 4x4 inputs. Direct convolution takes 36 multiplications
for each pair of an input and an output channel, minimal filtering 16:

    outputs = A' [(G g G') * (B' d B)] A,  with the weights g (3x3), the tile d (4x4), and * element by element

(Winograd 1980; Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016). The transformation of a
tile is linear and works on each channel by itself, so the patch's channel weights are applied after it. Some patches at a
time, few enough for the cache: gather their tiles from the nine maps, transform and weigh them (V); one matrix product
over the channels for each of the 16 elements (M = V U); and transform these back, with the pooling, bias and ReLU. No
patch is written to memory. The products add up in float32, also where their factors are bfloat16.

Every result depends on its own patch alone, with the same operations in the same order wherever the patch lies.

Legend for shapes: S pixels of a cell's nine maps, P patches, p patch side, q = p // 2, L channels of a tile, T tiles
processed at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from mibf.network.spec import FEATURES

_HOST = llvmlite.binding.get_host_cpu_features()
#: float32 values in a vector register, and vectors of outputs that a matrix product has at a time: as many as fit.
LANES, VECTORS = (16, 4) if _HOST.get("avx512f") else (8, 2)
#: Tiles that a matrix product has at a time: ROWS * VECTORS sums stay in registers.
ROWS = 6
COLUMNS = LANES * VECTORS
#: Tiles processed at a time, at least those of one patch: V and M of 16 * 36 tiles fit into 0.3 MB.
TILES = 36
#: Elements of a transformed tile.
ELEMENTS = 16
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def is_available(width: int, dtype: torch.dtype) -> bool:
    """Whether this CPU can compute the convolution of so many channels, and in this dtype faster than torch does."""
    if dtype == torch.bfloat16 and _HOST.get("amx-bf16"):  # its matrix units multiply faster still
        return False
    return dtype != torch.float16 and bool(_HOST.get("avx2") and _HOST.get("fma")) and width % LANES == 0


def transformed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Transform the weights of a convolution (64, L, 3, 3) for `pooled_features`: U, (16, L, 64).

    In bfloat16, if the CPU multiplies pairs of such numbers, U is (16, L / 2, 64, 2); otherwise it is float32.
    """
    matrix = torch.from_numpy(_G).to(weight)
    products = torch.einsum("ar,flrs,bs->ablf", matrix, weight, matrix).reshape(ELEMENTS, -1, FEATURES)
    if dtype == torch.bfloat16 and _HOST.get("avx512bf16"):
        return products.to(dtype).view(ELEMENTS, -1, 2, FEATURES).transpose(2, 3).contiguous()
    return products.float().contiguous()


def pooled_features(pixels: Tensor, places: Tensor, weights: Tensor, products: Tensor, bias: Tensor, out: Tensor) -> None:
    """Compute the convolution of some patches, with pooling, bias and ReLU: `out`, (P, q, q, 64), float32 or bfloat16.

    Args:
        pixels: of the nine maps, (S, L), float32.
        places: of every patch's pixels in these, with a row and a column of padding before it: (P, (p + 1) ** 2), int32.
        weights: of every patch's channels, (P, L), float32.
        products: U, from `transformed`.
        bias: (64,), float32.
        out: where the result is written.
    """
    arrays = (_array(x) for x in (pixels, places, weights, products.flatten(2).view(ELEMENTS, -1, FEATURES), bias, out))
    _pooled_features(*arrays, out.shape[1], max(1, TILES // out.shape[1] ** 2))


def _array(x: Tensor) -> NDArray[Any]:
    """Return a tensor's values as an array that shares its memory; bfloat16 as int16."""
    array: NDArray[Any] = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).contiguous().numpy()
    return array


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function at its first call, or read what an earlier process compiled, if there is a folder to keep it."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Callable[..., None] = njit(cache=True, **options)(function)
    except RuntimeError:
        compiled = njit(**options)(function)
    return compiled


# The code of the vector operations, as LLVM's instructions. `b` is the builder that emits them.
_FLOAT, _HALF, _WORD, _INDEX = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _vector(element: ir.Type, registers: int = 1) -> ir.VectorType:
    return ir.VectorType(element, registers * LANES)


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite is untyped
    """LLVM's bfloat, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def _zeros() -> ir.Constant:
    return ir.Constant(_vector(_FLOAT), [0.0] * LANES)


def _load(b: ir.IRBuilder, base: ir.Value, at: ir.Value, kind: ir.Type | None = None) -> ir.Value:
    """Load a vector, or another type, from an element of an array on."""
    return b.load(b.bitcast(b.gep(base, [at]), (kind or _vector(_FLOAT)).as_pointer()), align=2)


def _store(b: ir.IRBuilder, value: ir.Value, base: ir.Value, at: ir.Value) -> None:
    """Store a vector of float32 from an element of an array on; round it to bfloat16 if the array has 16 bits."""
    if base.type.pointee == _HALF:
        bits, one = b.bitcast(value, _vector(_WORD)), ir.Constant(_vector(_WORD), [1] * LANES)
        sixteen, half = (ir.Constant(_vector(_WORD), [number] * LANES) for number in (16, 0x7FFF))
        odd = b.and_(b.lshr(bits, sixteen), one)  # to the nearest, to the even one of two
        value = b.trunc(b.lshr(b.add(bits, b.add(half, odd)), sixteen), _vector(_HALF))
    b.store(value, b.bitcast(b.gep(base, [at]), value.type.as_pointer()), align=2)


def _spread(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Repeat a number in all elements of a vector."""
    empty = ir.Constant(_vector(value.type), ir.Undefined)
    return b.shuffle_vector(b.insert_element(empty, value, _WORD(0)), empty, ir.Constant(_vector(_WORD), [0] * LANES))


def _larger(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _forward(b: ir.IRBuilder, d: Sequence[ir.Value]) -> list[ir.Value]:
    """Multiply by B', which needs no multiplications."""
    return [b.fsub(d[0], d[2]), b.fadd(d[1], d[2]), b.fsub(d[2], d[1]), b.fsub(d[1], d[3])]


def _backward(b: ir.IRBuilder, m: Sequence[ir.Value]) -> list[ir.Value]:
    """Multiply by A'."""
    return [b.fadd(m[0], b.fadd(m[1], m[2])), b.fsub(b.fsub(m[1], m[2]), m[3])]


def _pointers(context: Any, b: ir.IRBuilder, kinds: Sequence[Any], values: Sequence[ir.Value]) -> list[ir.Value]:
    """Return the addresses of arrays' first elements, and other values as they are."""
    return [
        context.make_array(kind)(context, b, value).data if isinstance(kind, types.Array) else value
        for kind, value in zip(kinds, values, strict=True)
    ]


@intrinsic
def _transform_tile(  # type: ignore[no-untyped-def]  # Numba infers the types
    _, pixels, places, first, pitch, width, weights, weight, v, target, plane
):
    """Gather, transform and weigh a tile.

    Its first place is element `first` of `places`, whose rows are `pitch` long; its 16 elements are written `plane` apart.
    """

    def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        found = _pointers(context, b, signature.args, arguments)
        pixels, places, first, pitch, width, weights, weight, v, target, plane = found
        starts = [
            [
                b.mul(
                    b.sext(b.load(b.gep(places, [b.add(first, b.add(b.mul(pitch, _INDEX(r)), _INDEX(c)))])), _INDEX), width
                )
                for c in range(4)
            ]
            for r in range(4)
        ]
        with cgutils.for_range_slice(b, _INDEX(0), width, _INDEX(LANES)) as (channel, _):
            tile = [[_load(b, pixels, b.add(start, channel)) for start in row] for row in starts]
            columns = [_forward(b, column) for column in zip(*tile, strict=True)]
            scale = _load(b, weights, b.add(weight, channel))
            for i, row in enumerate(zip(*columns, strict=True)):
                for j, value in enumerate(_forward(b, row)):
                    at = b.add(b.add(target, channel), b.mul(plane, _INDEX(4 * i + j)))
                    _store(b, b.fmul(value, scale), v, at)
        return context.get_dummy_value()

    return types.void(pixels, places, first, pitch, width, weights, weight, v, target, plane), code


@intrinsic
def _multiply(_, v, row, u, matrix, column, m, target, width):  # type: ignore[no-untyped-def]  # Numba infers the types
    """Compute ROWS x COLUMNS elements of a matrix product of ROWS rows of V and COLUMNS columns of U."""
    pairs = v.dtype == types.int16

    def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        v, row, u, matrix, column, m, target, width = _pointers(context, b, signature.args, arguments)
        own = (ir.FunctionType(_vector(_FLOAT), [_vector(_FLOAT)] * 3), f"llvm.fma.v{LANES}f32")
        two = _vector(_BFloat(), 2)
        dot = (ir.FunctionType(_vector(_FLOAT), [_vector(_FLOAT), two, two]), "llvm.x86.avx512bf16.dpbf16ps.512")
        function = cgutils.get_or_insert_function(b.module, *(dot if pairs else own))
        step, element = (2, _WORD) if pairs else (1, _FLOAT)
        sums = [[cgutils.alloca_once(b, _vector(_FLOAT)) for _ in range(VECTORS)] for _ in range(ROWS)]
        for each in (each for line in sums for each in line):
            b.store(_zeros(), each)
        rows = [b.add(row, b.mul(width, _INDEX(r))) for r in range(ROWS)]
        with cgutils.for_range_slice(b, _INDEX(0), width, _INDEX(step)) as (channel, _):
            start = b.add(b.add(matrix, b.mul(_INDEX(step), column)), b.mul(channel, _INDEX(FEATURES)))
            factors = [_load(b, u, b.add(start, _INDEX(step * LANES * n)), _vector(element)) for n in range(VECTORS)]
            for line, at in zip(sums, rows, strict=True):
                value = _spread(b, _load(b, v, b.add(at, channel), element))
                for each, factor in zip(line, factors, strict=True):
                    if pairs:
                        total = b.call(function, [b.load(each), b.bitcast(value, two), b.bitcast(factor, two)])
                    else:
                        total = b.call(function, [value, factor, b.load(each)])
                    b.store(total, each)
        for r, line in enumerate(sums):
            for n, each in enumerate(line):
                _store(b, b.load(each), m, b.add(target, _INDEX(r * FEATURES + n * LANES)))
        return context.get_dummy_value()

    return types.void(v, row, u, matrix, column, m, target, width), code


@intrinsic
def _pool_tile(_, m, first, plane, bias, out, target):  # type: ignore[no-untyped-def]  # Numba infers the types
    """Transform a tile's products back, then pool, add the bias, and apply the ReLU."""

    def code(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        m, first, plane, bias, out, target = _pointers(context, b, signature.args, arguments)
        for start in range(0, FEATURES, LANES):
            at = b.add(first, _INDEX(start))
            tile = [[_load(b, m, b.add(at, b.mul(plane, _INDEX(4 * i + j)))) for j in range(4)] for i in range(4)]
            columns = [_backward(b, column) for column in zip(*tile, strict=True)]
            (one, two), (three, four) = (_backward(b, row) for row in zip(*columns, strict=True))
            largest = _larger(b, _larger(b, one, two), _larger(b, three, four))
            total = b.fadd(largest, _load(b, bias, _INDEX(start)))
            _store(b, _larger(b, total, _zeros()), out, b.add(target, _INDEX(start)))
        return context.get_dummy_value()

    return types.void(m, first, plane, bias, out, target), code


@_compiled
def _pooled_features(pixels, places, weights, u, bias, out, q, block):  # type: ignore[no-untyped-def]  # Numba infers the types
    width, side, area = pixels.shape[1], 2 * q + 2, q * q
    space = (block * area + ROWS - 1) // ROWS * ROWS  # a product always has ROWS tiles; the last ones may be left over
    v = np.zeros((ELEMENTS, space, width), u.dtype)
    m = np.empty((ELEMENTS, space, FEATURES), np.float32)
    for start in range(0, len(weights), block):
        patches = min(block, len(weights) - start)
        for patch in range(patches):
            for tile in range(area):
                first = (start + patch) * side * side + 2 * (tile // q) * side + 2 * (tile % q)
                target = (patch * area + tile) * width
                _transform_tile(
                    pixels, places, first, side, width, weights, (start + patch) * width, v, target, space * width
                )
        for element in range(ELEMENTS):
            for tile in range(element * space, element * space + patches * area, ROWS):
                for column in range(0, FEATURES, COLUMNS):
                    _multiply(v, tile * width, u, element * width * FEATURES, column, m, tile * FEATURES + column, width)
        for tile in range(patches * area):
            _pool_tile(m, tile * FEATURES, space * FEATURES, bias, out, (start * area + tile) * FEATURES)
