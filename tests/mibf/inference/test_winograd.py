"""Vector code against the tensor operations that it replaces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mibf.inference.dense import Dense
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import FEATURES, NARROW, NetworkSpec, SourceSpec

winograd = pytest.importorskip("mibf.inference.winograd", reason="Numba is not installed", exc_type=ImportError)
if not winograd.is_available(16, torch.float32):
    pytest.skip("this CPU has no vector code", allow_module_level=True)
DTYPES = (torch.float32, torch.bfloat16)


class Patches:
    """Some patches of random pixels, with the first row and column of padding, and a convolution."""

    def __init__(self, count: int, patch: int, width: int, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        self.side = patch + 1
        self.pixels = torch.rand(50, width, generator=draws)
        self.places = torch.randint(0, 50, (count, self.side**2), generator=draws, dtype=torch.int32)
        self.weights = torch.rand(count, width, generator=draws)
        self.kernel = torch.randn(FEATURES, width, 3, 3, generator=draws, dtype=torch.float64) / (9 * width) ** 0.5
        self.bias = torch.randn(FEATURES, generator=draws)

    def expected(self) -> Tensor:
        """The features in float64."""
        patches = self.pixels[self.places].double() * self.weights[:, None]
        patches = patches.view(-1, self.side, self.side, self.pixels.shape[1]).permute(0, 3, 1, 2)
        full = F.conv2d(patches, self.kernel, self.bias.double())
        return F.max_pool2d(full, 2).relu().permute(0, 2, 3, 1)

    def computed(self, dtype: torch.dtype, chosen: slice = slice(None)) -> Tensor:
        """The features of the chosen patches by vector code."""
        places = self.places[chosen]
        out = torch.empty(len(places), self.side // 2 - 1, self.side // 2 - 1, FEATURES, dtype=dtype)
        products = winograd.transformed(self.kernel, dtype)
        winograd.pooled_features(self.pixels, places, self.weights[chosen], products, self.bias, out)
        return out


@given(st.integers(1, 20), st.sampled_from([5, 7, 9, 15]), st.sampled_from([16, 32, 48]), st.integers(0, 2**31))
@settings(max_examples=15)
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_equal_convolution_and_pooling_of_patches(
    dtype: torch.dtype, count: int, patch: int, width: int, seed: int
) -> None:
    patches = Patches(count, patch, width, seed)
    # bfloat16 keeps 8 bits; sums of many products have small errors that cancel.
    close = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    torch.testing.assert_close(patches.computed(dtype).double(), patches.expected(), atol=close, rtol=close)


@given(st.integers(0, 20), st.integers(1, 10))
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_of_patch_are_bit_identical_whichever_others_are_computed(
    dtype: torch.dtype, start: int, count: int
) -> None:
    patches = Patches(30, 7, 32, seed=0)
    chosen = slice(start, start + count)
    assert torch.equal(patches.computed(dtype, chosen), patches.computed(dtype)[chosen])


def test_narrower_vectors_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for a CPU with half as wide vectors adds up each sum in the same order."""
    patches = Patches(10, 7, 32, seed=0)
    wide = patches.computed(torch.float32)
    for name, value in (("LANES", 8), ("VECTORS", 2), ("COLUMNS", 16)):
        monkeypatch.setattr(winograd, name, value)
    monkeypatch.setattr(winograd, "_pooled_features", winograd.njit(winograd._pooled_features.py_func))
    assert torch.equal(patches.computed(torch.float32), wide)


def test_without_folder_to_keep_compiled_code_it_is_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def njit(**options: object) -> Callable[[Callable[[], None]], Callable[[], None]]:
        tried.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(winograd, "njit", njit)
    assert winograd._compiled(print) is print
    assert [bool(options.get("cache")) for options in tried] == [True, False]


def test_matrix_units_multiply_bfloat16_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(winograd._HOST, "amx-bf16", True)
    assert not winograd.is_available(32, torch.bfloat16)
    assert winograd.is_available(32, torch.float32)
    assert not winograd.is_available(24, torch.float32)  # not a multiple of a vector


SPECS = {
    "three sources, one finer, one without vector code": NetworkSpec(
        (SourceSpec("a", 5, (32, 16)), SourceSpec("b", 2, NARROW, scale=2), SourceSpec("c", 3, (16, 20))),
        classes=4,
        patch=5,
        centre=True,
    ),
    "two sources": NetworkSpec((SourceSpec("a", 6), SourceSpec("b", 2, NARROW)), classes=4),
}


@pytest.mark.parametrize("name", SPECS)
def test_dense_outputs_equal_those_of_torch_alone_up_to_rounding(name: str, small_cells: int) -> None:
    spec = SPECS[name]
    torch.manual_seed(0)
    network = MIBFNet(spec).eval()
    reach = 2 * spec.halo
    tile = [torch.rand(s.bands, (2 * small_cells + reach) * s.scale, (small_cells + reach) * s.scale) for s in spec.sources]
    with_code, alone = Dense(network), Dense(network, kernels=False)
    used = [branch.filtering is not None for branch in with_code.folded.branches]
    assert used == [source.widths[1] % 16 == 0 for source in spec.sources]
    assert not any(branch.filtering for branch in alone.folded.branches)
    ours, theirs = (dense(tile, products=["logits", "gate"]) for dense in (with_code, alone))
    for product in ("logits", "gate"):
        torch.testing.assert_close(ours[product], theirs[product], atol=1e-5, rtol=0)
    fast, slow = (Dense(network, precision="bf16", kernels=kernels)(tile, products=["logits"]) for kernels in (True, False))
    exact = theirs["logits"]
    assert (fast["logits"] - exact).square().mean() <= 1.5 * (slow["logits"] - exact).square().mean()
