"""Compare our moving average of weights with torch's `AveragedModel`: equal values, and time per update.

Run `python benchmarks/moving_average.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NetworkSpec, SourceSpec
from mibf.training.ema import ExponentialMovingAverage

DECAY, STEPS, REPEATS = 0.99, 300, 5


class TorchAverage(AveragedModel):
    """`AveragedModel` with the warm-up of ours."""

    def __init__(self, network: MIBFNet) -> None:
        super().__init__(network, multi_avg_fn=self._average, use_buffers=True)  # type: ignore[arg-type]  # one of its types
        self.n_averaged += 1  # at 0 it would copy the weights after the first step instead of averaging them

    def _average(self, own: list[Tensor], now: list[Tensor], _: Tensor) -> None:
        steps = int(self.n_averaged) - 1
        if own[0].is_floating_point():
            torch._foreach_lerp_(own, now, 1 - min(DECAY, (1 + steps) / (10 + steps)))
        else:
            torch._foreach_copy_(own, now)


@torch.no_grad()
def move(network: MIBFNet) -> None:
    """Change all weights and buffers, as a step of training does."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.add_(torch.randn_like(tensor) * 0.1 if tensor.is_floating_point() else 1)


def microseconds(update: Callable[[MIBFNet], None], network: MIBFNet) -> float:
    """Mean time of an update, in the fastest of several runs."""
    means = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(STEPS):
            update(network)
        means.append((time.perf_counter() - start) / STEPS)
    return min(means) * 1e6


def main() -> None:
    """Check that all values are equal after every step, then print the times and their ratio."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = MIBFNet(NetworkSpec((SourceSpec("optical", 144), SourceSpec("lidar", 1)), classes=15))
    ours, torchs = ExponentialMovingAverage(network, decay=DECAY), TorchAverage(network)
    for _ in range(STEPS):
        move(network)
        ours.update(network)
        torchs.update_parameters(network)
        pairs = zip(ours.network.state_dict().values(), torchs.module.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    own, other = microseconds(ours.update, network), microseconds(torchs.update_parameters, network)
    print(f"{len(network.state_dict())} tensors: ours {own:.0f} us, AveragedModel {other:.0f} us, {other / own:.2f} x")


if __name__ == "__main__":
    main()
