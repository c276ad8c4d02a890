"""The training step: it learns, it stops at what is not finite, it resumes exactly."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

import mibf.training
from mibf.checkpoint import Checkpoint
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.optim import FLOOR, make_optimiser, rate_share
from mibf.spec import NARROW, PARTS, NetworkSpec, Part, SourceSpec
from mibf.training import Batch, NonFiniteError, train_epoch, validate

SPEC = NetworkSpec((SourceSpec("optical", 2), SourceSpec("radar", 1, NARROW)), classes=2, patch=5)


def batches(count: int, *, seed: int = 0, size: int = 32) -> Iterator[Batch]:
    """Two classes that the centre of the second source tells apart."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        labels = generator.integers(0, 2, size)
        optical = generator.random((size, 2, 5, 5), dtype=np.float32)
        radar = generator.random((size, 1, 5, 5), dtype=np.float32) * 0.3 + 0.7 * labels[:, None, None, None]
        yield Batch((optical, radar.astype(np.float32)), labels)


def fresh(
    steps: int = 40, spec: NetworkSpec = SPEC
) -> tuple[MIBFNet, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    torch.manual_seed(0)
    network = MIBFNet(spec)
    return network, *make_optimiser(network.parameters(), rate=3e-3, weight_decay=1e-4, steps=steps, warmup=4)


def epoch(parts: tuple, given_batches: Iterator[Batch]) -> float:
    network, optimiser, schedule = parts
    return train_epoch(
        network, given_batches, optimiser=optimiser, schedule=schedule, beta=1e-4, precision="float32"
    ).cross_entropy


def test_it_learns_what_a_source_tells() -> None:
    parts = fresh()
    first = epoch(parts, batches(20))
    epoch(parts, batches(20, seed=1))
    figures = validate(parts[0], batches(5, seed=2), beta=1e-4, precision="float32")
    assert figures.cross_entropy < 0.5 * first
    assert figures.confusion.samples == 5 * 32
    assert figures.confusion.overall_accuracy > 0.95


@pytest.mark.parametrize("without", [("noise",), ("relation",), ("bottleneck",), PARTS])
def test_it_learns_without_parts_too(without: tuple[Part, ...]) -> None:
    parts = fresh(spec=replace(SPEC, without=without))
    first = epoch(parts, batches(20))
    assert epoch(parts, batches(20, seed=1)) < 0.5 * first
    figures = validate(parts[0], batches(5, seed=2), beta=1e-4, precision="float32")
    assert (figures.rate == 0) == ("bottleneck" in without)


def test_one_source_learns_alone() -> None:
    parts = fresh(spec=NetworkSpec(SPEC.sources[1:], classes=2, patch=5, without=("noise", "relation")))
    radar = [Batch(batch.sources[1:], batch.labels) for batch in batches(45)]
    epoch(parts, iter(radar[:40]))
    assert validate(parts[0], radar[40:], beta=1e-4, precision="float32").confusion.overall_accuracy > 0.95
    assert torch.equal(parts[0].noise.mean_gate, torch.ones(1))


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = fresh(), fresh()
    for parts in (one, other):
        torch.manual_seed(5)
        epoch(parts, batches(6))
    for a, b in zip(one[0].state_dict().values(), other[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_figures_are_sums_divided_once() -> None:
    network, _, _ = fresh()
    parts = list(batches(2)) + list(batches(1, seed=3, size=5))
    whole = Batch(
        tuple(np.concatenate([p.sources[i] for p in parts]) for i in range(2)), np.concatenate([p.labels for p in parts])
    )
    apart = validate(network, parts, beta=0.1, precision="float32")
    together = validate(network, [whole], beta=0.1, precision="float32")
    assert apart.loss == pytest.approx(together.loss, rel=1e-5)
    assert (apart.confusion.counts == together.confusion.counts).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_stops_before_the_optimiser_moves(poison: float) -> None:
    parts = fresh()
    good, bad = batches(2)
    bad.sources[0][0, 0, 0, 0] = poison
    epoch(parts, iter([good]))
    before = [p.clone() for p in parts[0].parameters()]
    with pytest.raises(NonFiniteError, match="batch 0"):
        epoch(parts, iter([bad]))
    assert all(torch.equal(a, b) for a, b in zip(before, parts[0].parameters(), strict=True))
    with pytest.raises(NonFiniteError, match="batch 2"):
        epoch(fresh(), iter([*batches(2), bad]))


def test_weights_stay_as_they_were_however_late_the_host_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where steps go on until the host asks: the optimiser holds still from the first bad batch on."""
    monkeypatch.setitem(mibf.training._ASKED, "cpu", 1000)
    stopped, straight = fresh(), fresh()
    good, more = list(batches(3)), list(batches(4, seed=8))
    more[0].sources[0][0, 0, 0, 0] = np.nan
    torch.manual_seed(0)
    epoch(straight, iter(good))
    torch.manual_seed(0)
    with pytest.raises(NonFiniteError, match="batch 3: loss nan"):
        epoch(stopped, iter([*good, *more]))
    for a, b in zip(straight[0].parameters(), stopped[0].parameters(), strict=True):
        assert torch.equal(a, b)


def _average_gate(rank: int, folder: str) -> None:
    """One of two workers, each with batches of its own."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network, optimiser, schedule = fresh()
    model = DistributedDataParallel(network, broadcast_buffers=False)
    seen: list[torch.Tensor] = []
    observe = network.noise.observe
    network.noise.observe = lambda gate: (observe(gate), seen.append(network.noise.mean_gate.clone()))[0]  # type: ignore[method-assign]  # watched by the test
    train_epoch(model, batches(3, seed=rank), optimiser=optimiser, schedule=schedule, beta=1e-4, precision="float32")
    torch.save({"own": seen[-1], "mean": network.noise.mean_gate}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_mean_gate_is_averaged_over_workers(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_average_gate, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not torch.equal(one["own"], other["own"])
    torch.testing.assert_close(one["mean"], (one["own"] + other["own"]) / 2)
    assert torch.equal(one["mean"], other["mean"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_a_compiled_network_trains_to_nearly_the_same_weights() -> None:
    plain, compiled = fresh(), fresh()
    compiled[0].compile()
    for parts in (plain, compiled):
        torch.manual_seed(0)
        parts[0].noise.mean_gate.fill_(0.5)
        epoch(parts, batches(2))
    assert plain[0].state_dict().keys() == compiled[0].state_dict().keys()
    for name, value in plain[0].named_parameters():
        assert torch.isfinite(compiled[0].get_parameter(name)).all()
        assert (compiled[0].get_parameter(name) - value).abs().max() < 0.05


def test_resuming_equals_never_having_stopped() -> None:
    straight, stopped = fresh(), fresh()

    def run(parts: tuple, number: int) -> None:
        torch.manual_seed(100 + number)
        epoch(parts, batches(4, seed=number))

    for number in range(3):
        run(straight, number)
    run(stopped, 0)
    content = Checkpoint.of(*stopped, history=[{"epoch": 1}]).to_bytes()
    resumed = fresh()
    checkpoint = Checkpoint.from_bytes(content)
    checkpoint.restore(*resumed)
    assert checkpoint.history == [{"epoch": 1}]
    for number in (1, 2):
        run(resumed, number)
    for (name, a), b in zip(straight[0].state_dict().items(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert straight[2].get_last_lr() == resumed[2].get_last_lr()


def test_a_damaged_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match="damaged"):
        Checkpoint.from_bytes(b"not a checkpoint")


@given(st.integers(1, 500), st.integers(0, 50))
def test_the_rate_starts_at_zero_peaks_once_and_ends_low(steps: int, warmup: int) -> None:
    shares = [rate_share(s, steps=warmup + steps, warmup=warmup) for s in range(warmup + steps + 1)]
    assert shares[0] == (0 if warmup else 1)
    assert max(shares) == shares[warmup] == 1
    assert shares[-1] == pytest.approx(FLOOR)
    assert all(a >= b for a, b in zip(shares[warmup:], shares[warmup + 1 :], strict=False))
