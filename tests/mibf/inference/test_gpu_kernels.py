"""GPU kernels against the tensor operations that they replace, on a CPU by Triton's interpreter: see `tests/conftest.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mibf.inference import gpu_kernels
from mibf.inference.dense import Dense
from mibf.inference.outputs import PRODUCT_NAMES
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec

pytest.importorskip("triton", reason="Triton is not installed")
#: Side of a cell here.
SIDE = 8


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch, small_cells: int) -> None:
    """Make cells small and programs large, because the interpreter is slow."""
    assert small_cells == SIDE
    monkeypatch.setattr(gpu_kernels, "MAPS", (128, 4, 3))
    monkeypatch.setattr(gpu_kernels, "WEIGHTS", (64, 4, 3))
    monkeypatch.setattr(gpu_kernels, "PATCHES", {torch.float32: (64, 4, 1, 1)})


def trained(spec: NetworkSpec) -> MIBFNet:
    """A network whose batch norms change values, as after training."""
    torch.manual_seed(0)
    network = MIBFNet(spec).eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.rand_like(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand_like(buffer))
    return network


def with_kernels(network: Dense) -> Dense:
    network.kernels = True
    return network


def tile_of(spec: NetworkSpec, height: int, width: int) -> list[Tensor]:
    reach = 2 * spec.halo
    return [torch.rand(s.bands, (height + reach) * s.scale, (width + reach) * s.scale) for s in spec.sources]


SPECS = {
    "three sources, one finer, one with more bands than are read at a time": NetworkSpec(
        (
            SourceSpec("a", gpu_kernels.CHANNELS + 3, (32, 16)),
            SourceSpec("b", 2, NARROW, scale=2),
            SourceSpec("c", 3, (16, 16)),
        ),
        classes=4,
        patch=5,
        centre=True,
    ),
    "one source": NetworkSpec((SourceSpec("a", 3, (16, 16)),), classes=2, patch=7, without=("noise", "relation")),
}


@pytest.mark.parametrize("name", SPECS)
def test_kernels_compute_what_tensor_operations_compute(name: str) -> None:
    spec = SPECS[name]
    network, tile = trained(spec), tile_of(spec, 20, 10)
    kernels = with_kernels(Dense(network))(tile, products=PRODUCT_NAMES)
    for product, values in Dense(network)(tile, products=PRODUCT_NAMES).items():
        torch.testing.assert_close(
            kernels[product], values, atol=2e-6, rtol=1e-5, msg=lambda text, of=product: f"{of}: {text}"
        )


def test_several_cells_at_a_time_and_pixels_without_data() -> None:
    spec = NetworkSpec((SourceSpec("a", 3, (16, 16)), SourceSpec("b", 2, NARROW, scale=2)), classes=4, patch=5)
    network, tile = trained(spec), tile_of(spec, SIDE + 5, SIDE)
    valid = torch.rand(SIDE + 5 + 2 * spec.halo, SIDE + 2 * spec.halo) > 0.3
    kernels = with_kernels(Dense(network, cells=3))(tile, products=["logits"], valid=valid)["logits"]
    torch.testing.assert_close(kernels, Dense(network)(tile, products=["logits"], valid=valid)["logits"], equal_nan=True)


def test_are_available_on_gpus_for_widths_that_are_powers_of_two() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert gpu_kernels.are_available(gpu, [16, 32, 128])
    assert not gpu_kernels.are_available(gpu, [16, 48])
    assert not gpu_kernels.are_available(cpu, [16, 32])
