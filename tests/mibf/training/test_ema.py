"""The moving average of weights: bit for bit its formula and torch's `AveragedModel`, separate from the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.training.ema import ExponentialMovingAverage

SPEC = NetworkSpec((SourceSpec("optical", 2), SourceSpec("radar", 1, NARROW)), classes=2, patch=5)
STEPS = 60


def make_network() -> MIBFNet:
    torch.manual_seed(0)
    return MIBFNet(SPEC)


@torch.no_grad()
def take_step(network: MIBFNet) -> None:
    """Change every weight and buffer, as a step of training does."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.add_(torch.randn_like(tensor) * 0.1 if tensor.is_floating_point() else 1)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_each_update_equals_a_lerp_with_warm_up_bit_for_bit(decay: float) -> None:
    network = make_network()
    average = ExponentialMovingAverage(network, decay=decay)
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for step in range(STEPS):
        take_step(network)
        average.update(network)
        now = min(decay, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            floating = tensor.is_floating_point()
            expected[name] = torch.lerp(expected[name], tensor, 1 - now) if floating else tensor.clone()
        assert equal(average.network.state_dict(), expected), f"step {step}"
    assert average.steps == STEPS


def test_values_equal_those_of_torchs_averaged_model() -> None:
    def lerp(own: list[Tensor], now: list[Tensor], steps: Any) -> None:
        decay = min(0.9, float(steps) / (9 + float(steps)))  # its counter starts at 1 here, ours at 0
        for mine, new in zip(own, now, strict=True):
            mine.lerp_(new, 1 - decay) if mine.is_floating_point() else mine.copy_(new)

    network = make_network()
    ours = ExponentialMovingAverage(network, decay=0.9)
    torchs = AveragedModel(network, multi_avg_fn=lerp, use_buffers=True)
    torchs.n_averaged += 1  # at 0 it would copy the weights after the first step
    for _ in range(STEPS):
        take_step(network)
        ours.update(network)
        torchs.update_parameters(network)
    assert equal(ours.network.state_dict(), torchs.module.state_dict())


def test_state_has_the_names_of_the_network_and_continues_exactly() -> None:
    """A checkpoint holds this state and the number of steps, nothing else."""
    network = make_network()
    straight = ExponentialMovingAverage(network, decay=0.9)
    for _ in range(5):
        take_step(network)
        straight.update(network)
    assert list(straight.network.state_dict()) == list(network.state_dict())
    resumed = ExponentialMovingAverage(make_network(), decay=0.9)
    resumed.network.load_state_dict(straight.network.state_dict())
    resumed.steps = straight.steps
    for _ in range(5):
        take_step(network)
        straight.update(network)
        resumed.update(network)
    assert equal(straight.network.state_dict(), resumed.network.state_dict())


def test_average_shares_no_tensor_and_needs_no_gradient() -> None:
    network = make_network().train()
    average = ExponentialMovingAverage(network, decay=0.9)
    before = {name: tensor.clone() for name, tensor in average.network.state_dict().items()}
    take_step(network)
    assert equal(average.network.state_dict(), before)
    assert network.training
    assert not average.network.training
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in average.network.parameters())
