"""Batch norm's statistics computed again for a network: their values, over several workers, and what they are good for."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.training.batch import Batch
from mibf.training.batch_statistics import recompute_statistics
from mibf.training.ema import ExponentialMovingAverage
from mibf.training.epoch import TrainState, train_epoch, validate
from mibf.training.optimizer import make_optimizer
from tests.support.distributed import two_workers

SPEC = NetworkSpec((SourceSpec("optical", 2), SourceSpec("radar", 1, NARROW)), classes=2, patch=5, centre=True)


def batches(count: int, *, seed: int = 0, size: int = 32) -> list[Batch]:
    """Batches of two classes that the second source separates."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        labels = generator.integers(0, 2, size)
        optical = generator.random((size, 2, 5, 5), dtype=np.float32)
        radar = generator.random((size, 1, 5, 5), dtype=np.float32) * 0.3 + 0.7 * labels[:, None, None, None]
        found.append(Batch((optical, radar.astype(np.float32)), labels))
    return found


def network() -> MIBFNet:
    torch.manual_seed(0)
    return MIBFNet(SPEC, dropout=0.5)


def test_statistics_of_the_first_layer_are_the_means_over_all_batches() -> None:
    found, given = network(), batches(3)
    convolution, layer = found.branches[0].spatial[:2]
    recompute_statistics(found, given, precision="float32")
    values = [convolution(torch.from_numpy(b.sources[0])).detach().double().numpy() for b in given]
    assert layer.running_mean.numpy() == pytest.approx(np.mean([v.mean(axis=(0, 2, 3)) for v in values], axis=0), abs=1e-5)
    variances = [v.var(axis=(0, 2, 3), ddof=1) for v in values]
    assert layer.running_var.numpy() == pytest.approx(np.mean(variances, axis=0), rel=1e-4)
    assert layer.momentum == 0.1
    assert not any(module.training for module in found.modules())


def test_statistics_do_not_depend_on_earlier_ones_or_on_random_numbers() -> None:
    one, other = network(), network()
    train_epoch_of(other, steps=2)
    other.load_state_dict({**other.state_dict(), **dict(one.named_parameters())})
    for seed, each in enumerate((one, other)):
        torch.manual_seed(seed)
        recompute_statistics(each, batches(2), precision="float32")
    for (name, a), b in zip(one.named_buffers(), other.buffers(), strict=True):
        assert name == "noise.mean_gate" or torch.equal(a, b), name


def train_epoch_of(trained: MIBFNet, *, steps: int) -> ExponentialMovingAverage:
    average = ExponentialMovingAverage(trained, decay=0.9)
    made = make_optimizer(trained.parameters(), learning_rate=3e-3, weight_decay=0, steps=10 * steps, warmup=0)
    train_epoch(TrainState(trained, *made, beta=0.0, average=average), batches(steps), seed=lambda step: step)
    return average


def test_averaged_network_of_few_steps_is_far_better_with_statistics_of_its_own() -> None:
    """A tenth of the way through a training; the running statistics are those of the initial weights for the most part."""
    average = train_epoch_of(network(), steps=8).network
    measured = batches(4, seed=9)

    def cross_entropy(of: MIBFNet) -> float:
        return validate(of, measured, beta=0.0, precision="float32").cross_entropy

    before = cross_entropy(average)
    own = copy.deepcopy(average)
    recompute_statistics(own, batches(4, seed=5), precision="float32")
    assert cross_entropy(own) < 0.5 * before


def _recompute_on_own_batch(rank: int) -> dict[str, torch.Tensor]:
    found = network()
    recompute_statistics(found, batches(2)[rank : rank + 1], precision="float32")
    return dict(found.named_buffers())


@pytest.mark.slow
def test_workers_get_the_statistics_of_all_their_batches(tmp_path: Path) -> None:
    alone = network()
    recompute_statistics(alone, batches(2), precision="float32")
    for worker in two_workers(_recompute_on_own_batch, tmp_path):
        for name, buffer in alone.named_buffers():
            if buffer.is_floating_point():
                torch.testing.assert_close(worker[name], buffer, rtol=1e-4, atol=1e-5)
