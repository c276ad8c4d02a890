"""The training step: it learns, it stops at what is not finite, it resumes exactly."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

import mibf.training
from mibf.average import Average
from mibf.batchnorm import synchronised
from mibf.checkpoint import Checkpoint, DamagedCheckpointError
from mibf.errors import InputError
from mibf.network import MIBFNet, Output
from mibf.objective import class_weights, objective
from mibf.optim import FLOOR, make_optimiser, rate_share
from mibf.precision import check_precision
from mibf.spec import NARROW, PARTS, NetworkSpec, Part, SourceSpec
from mibf.training import Batch, Figures, Learner, NonFiniteError, Step, Sums, train_epoch, validate
from tests.workers import two_workers

SPEC = NetworkSpec((SourceSpec("optical", 2), SourceSpec("radar", 1, NARROW)), classes=2, patch=5)
#: The same without what is drawn in training.
STILL = replace(SPEC, without=("noise", "bottleneck"))


def batches(count: int, *, seed: int = 0, size: int = 32) -> Iterator[Batch]:
    """Two classes that the centre of the second source tells apart."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        labels = generator.integers(0, 2, size)
        optical = generator.random((size, 2, 5, 5), dtype=np.float32)
        radar = generator.random((size, 1, 5, 5), dtype=np.float32) * 0.3 + 0.7 * labels[:, None, None, None]
        yield Batch((optical, radar.astype(np.float32)), labels)


def fresh(steps: int = 40, *, spec: NetworkSpec = SPEC, average: float | None = None, **given: Any) -> Learner:
    torch.manual_seed(0)
    network = MIBFNet(spec)
    moving = None if average is None else Average(network, decay=average)
    made = make_optimiser(network.parameters(), rate=3e-3, weight_decay=1e-4, steps=steps, warmup=4)
    return Learner(network, *made, beta=1e-4, average=moving, **given)


def epoch(learner: Learner, given_batches: Iterator[Batch]) -> float:
    return train_epoch(learner, given_batches).cross_entropy


def test_it_learns_what_a_source_tells() -> None:
    learner = fresh()
    first = epoch(learner, batches(20))
    epoch(learner, batches(20, seed=1))
    figures = validate(learner.network, batches(5, seed=2), beta=1e-4, precision="float32")
    assert figures.cross_entropy < 0.5 * first
    assert figures.confusion.samples == 5 * 32
    assert figures.confusion.overall_accuracy > 0.95


@pytest.mark.parametrize("without", [("noise",), ("relation",), ("bottleneck",), PARTS])
def test_it_learns_without_parts_too(without: tuple[Part, ...]) -> None:
    learner = fresh(spec=replace(SPEC, without=without))
    first = epoch(learner, batches(20))
    assert epoch(learner, batches(20, seed=1)) < 0.5 * first
    figures = validate(learner.network, batches(5, seed=2), beta=1e-4, precision="float32")
    assert (figures.rate == 0) == ("bottleneck" in without)


def test_one_source_learns_alone() -> None:
    learner = fresh(spec=NetworkSpec(SPEC.sources[1:], classes=2, patch=5, without=("noise", "relation")))
    radar = [Batch(batch.sources[1:], batch.labels) for batch in batches(45)]
    epoch(learner, iter(radar[:40]))
    assert validate(learner.network, radar[40:], beta=1e-4, precision="float32").confusion.overall_accuracy > 0.95
    assert torch.equal(learner.network.noise.mean_gate, torch.ones(1))


def test_the_same_seed_gives_the_same_weights() -> None:
    one, other = fresh(), fresh()
    for learner in (one, other):
        torch.manual_seed(5)
        epoch(learner, batches(6))
    for a, b in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_figures_are_sums_divided_once() -> None:
    network = fresh().network
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
    learner = fresh()
    good, bad = batches(2)
    bad.sources[0][0, 0, 0, 0] = poison
    epoch(learner, iter([good]))
    before = [p.clone() for p in learner.network.parameters()]
    with pytest.raises(NonFiniteError, match="batch 0"):
        epoch(learner, iter([bad]))
    assert all(torch.equal(a, b) for a, b in zip(before, learner.network.parameters(), strict=True))
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
    for a, b in zip(straight.network.parameters(), stopped.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_to_be_kept_can_be_asked_for_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint within an epoch must not hold steps on which the optimiser held still."""
    monkeypatch.setitem(mibf.training._ASKED, "cpu", 1000)
    given = list(batches(4))
    given[2].sources[0][0, 0, 0, 0] = np.nan
    checked = []

    def after_step(step: Step) -> None:
        step.check()
        checked.append(step.number)

    with pytest.raises(NonFiniteError, match="batch 2"):
        train_epoch(fresh(), given, after_step=after_step)
    assert checked == [1, 2]


def _average_gate(rank: int) -> dict[str, Any]:
    """One of two workers, each with batches of its own."""
    learner = fresh()
    network = learner.network
    learner.model = DistributedDataParallel(network, broadcast_buffers=False)
    seen: list[torch.Tensor] = []
    observe = network.noise.observe
    network.noise.observe = lambda gate: (observe(gate), seen.append(network.noise.mean_gate.clone()))[0]  # type: ignore[method-assign]  # watched by the test
    train_epoch(learner, batches(3, seed=rank))
    return {"own": seen[-1], "mean": network.noise.mean_gate}


@pytest.mark.slow
def test_the_mean_gate_is_averaged_over_workers(tmp_path: Path) -> None:
    one, other = two_workers(_average_gate, tmp_path)
    assert not torch.equal(one["own"], other["own"])
    torch.testing.assert_close(one["mean"], (one["own"] + other["own"]) / 2)
    assert torch.equal(one["mean"], other["mean"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_a_compiled_network_trains_to_nearly_the_same_weights() -> None:
    plain, compiled = fresh(), fresh()
    compiled.network.compile()
    for learner in (plain, compiled):
        torch.manual_seed(0)
        learner.network.noise.mean_gate.fill_(0.5)
        epoch(learner, batches(2))
    assert plain.network.state_dict().keys() == compiled.network.state_dict().keys()
    for name, value in plain.network.named_parameters():
        assert torch.isfinite(compiled.network.get_parameter(name)).all()
        assert (compiled.network.get_parameter(name) - value).abs().max() < 0.05


def run_epoch(learner: Learner, number: int, *, start: int = 0, sums: Sums | None = None) -> tuple[list[float], Figures]:
    """An epoch of six steps from `start` on: the loss of each, and the figures."""
    losses: list[float] = []
    figures = train_epoch(
        learner,
        islice(batches(6, seed=number), start, None),
        start=start,
        sums=sums,
        seed=lambda step: 1000 * number + step,
        after_step=lambda step: losses.append(float(step.loss)),
    )
    return losses, figures


def equal(one: Learner, other: Learner) -> None:
    """All that moves in training is the same, bit for bit."""
    for (name, a), b in zip(one.network.state_dict().items(), other.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), b in zip(one.judged.state_dict().items(), other.judged.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"averaged {name}"
    assert one.schedule.get_last_lr() == other.schedule.get_last_lr()


@pytest.mark.parametrize("average", [None, 0.9])
def test_resuming_equals_never_having_stopped_loss_for_loss(average: float | None) -> None:
    straight, stopped = fresh(average=average), fresh(average=average)
    losses = [run_epoch(straight, number)[0] for number in range(3)]
    run_epoch(stopped, 0)
    content = Checkpoint.of(stopped, epoch=1, history=[{"epoch": 1}], identity={"of": "this"}).to_bytes()
    resumed = fresh(average=average)
    checkpoint = Checkpoint.from_bytes(content)
    checkpoint.restore(resumed)
    assert (checkpoint.epoch, checkpoint.step, checkpoint.history) == (1, 0, [{"epoch": 1}])
    assert [run_epoch(resumed, number)[0] for number in (1, 2)] == losses[1:]
    equal(straight, resumed)


def test_resuming_within_an_epoch_goes_on_with_its_sums() -> None:
    straight, stopped = fresh(average=0.9), fresh(average=0.9)
    losses, figures = run_epoch(straight, 0)
    kept: list[bytes] = []

    def keep(step: Step) -> None:
        if step.number == 4:
            sums = step.sums.state()
            kept.append(Checkpoint.of(stopped, epoch=0, step=4, sums=sums, history=[], identity={}).to_bytes())

    train_epoch(stopped, batches(6, seed=0), seed=lambda step: step, after_step=keep)
    resumed = fresh(average=0.9)
    checkpoint = Checkpoint.from_bytes(kept[0])
    checkpoint.restore(resumed)
    sums = Sums(2, torch.device("cpu"))
    assert checkpoint.sums is not None
    sums.load(checkpoint.sums)
    rest, whole = run_epoch(resumed, 0, start=checkpoint.step, sums=sums)
    assert rest == losses[4:]
    assert whole.loss == figures.loss
    assert (whole.confusion.counts == figures.confusion.counts).all()
    equal(straight, resumed)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"mibf checkpoint 2\n"])
def test_what_is_no_checkpoint_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedCheckpointError, match="damaged"):
        Checkpoint.from_bytes(content)


@given(st.data())
def test_a_checkpoint_cut_short_or_changed_anywhere_is_refused(data: st.DataObject) -> None:
    whole = WHOLE
    if data.draw(st.booleans()):
        broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        broken = whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :]
    with pytest.raises(DamagedCheckpointError):
        Checkpoint.from_bytes(broken)


WHOLE = Checkpoint.of(fresh(), epoch=0, history=[], identity={}).to_bytes()


def test_a_checkpoint_of_another_network_does_not_fit() -> None:
    other = fresh(spec=replace(SPEC, classes=3))
    with pytest.raises(InputError, match="does not fit"):
        Checkpoint.from_bytes(WHOLE).restore(other)


def test_pieces_add_up_to_the_gradient_of_the_whole_batch() -> None:
    """Of a batch that is twice the same half: batch norm sees the same statistics in a piece as in the whole."""
    (half,) = batches(1, size=16)
    twice = Batch(tuple(np.concatenate([x, x]) for x in half.sources), np.concatenate([half.labels, half.labels]))
    whole, pieces = fresh(spec=STILL), fresh(spec=STILL, pieces=2)
    for learner in (whole, pieces):
        train_epoch(learner, iter([twice]))
    for (name, a), b in zip(whole.network.named_parameters(), pieces.network.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_no_piece_is_of_one_sample() -> None:
    learner = fresh(pieces=8)
    figures = train_epoch(learner, batches(2, size=9))
    assert figures.confusion.samples == 18


def test_gradients_are_clipped_to_their_norm() -> None:
    loose, tight = fresh(spec=STILL), fresh(spec=STILL, clip=0.01)
    norms = []
    for learner in (loose, tight):
        train_epoch(learner, batches(1))
        norms.append(
            math.sqrt(sum(float(p.grad.square().sum()) for p in learner.network.parameters() if p.grad is not None))
        )
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_the_average_follows_the_weights_as_its_formula_says() -> None:
    learner = fresh(average=0.9)
    assert learner.average is not None
    expected = {name: value.clone() for name, value in learner.network.named_parameters()}

    def follow(step: Step) -> None:
        done = step.number - 1
        decay = min(0.9, (1 + done) / (10 + done))
        for name, value in learner.network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach()

    train_epoch(learner, batches(12), after_step=follow)
    assert learner.judged is learner.average.network
    for name, value in learner.judged.named_parameters():
        torch.testing.assert_close(value, expected[name])


def test_float16_scales_the_loss_and_learns_on() -> None:
    """On a processor too, where the command line does not offer it."""
    learner = fresh(precision="fp16")
    assert learner.scaler is not None
    before = [p.clone() for p in learner.network.parameters()]
    first = epoch(learner, batches(20))
    assert epoch(learner, batches(20, seed=1)) < first
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.network.parameters(), strict=True))
    content = Checkpoint.of(learner, epoch=1, history=[], identity={}).to_bytes()
    resumed = fresh(precision="fp16")
    Checkpoint.from_bytes(content).restore(resumed)
    assert resumed.scaler is not None
    assert resumed.scaler.state_dict() == learner.scaler.state_dict()


def test_float16_stops_at_a_loss_that_is_not_finite() -> None:
    learner = fresh(precision="fp16")
    good, bad = batches(2)
    bad.sources[0][0, 0, 0, 0] = np.nan
    epoch(learner, iter([good]))
    before = [p.clone() for p in learner.network.parameters()]
    with pytest.raises(NonFiniteError, match="batch 0"):
        epoch(learner, iter([bad]))
    assert all(torch.equal(a, b) for a, b in zip(before, learner.network.parameters(), strict=True))


def test_a_processor_has_no_float16() -> None:
    with pytest.raises(InputError, match="fp16, which wants a GPU"):
        check_precision(torch.device("cpu"), "fp16")
    check_precision(torch.device("cpu"), "bf16")


def _uneven(rank: int) -> dict[str, Any]:
    """One of two workers; the first has 20 samples of each step, the other 12."""
    learner = fresh(spec=STILL)
    synchronised(learner.network)
    learner.model = DistributedDataParallel(learner.network, broadcast_buffers=False)
    own = slice(0, 20) if rank == 0 else slice(20, 32)
    parts = (Batch(tuple(x[own] for x in b.sources), b.labels[own]) for b in batches(1))
    figures = train_epoch(learner, parts, samples=32)
    gradients = {name: p.grad for name, p in learner.network.named_parameters()}
    return {"loss": figures.loss, "gradients": gradients, "buffers": dict(learner.network.named_buffers())}


@pytest.mark.slow
def test_workers_with_unequal_batches_train_as_one_with_all(tmp_path: Path) -> None:
    workers = two_workers(_uneven, tmp_path)
    alone = fresh(spec=STILL)
    figures = train_epoch(alone, batches(1))
    for found in workers:
        assert found["loss"] == pytest.approx(figures.loss, rel=1e-4)
        for name, parameter in alone.network.named_parameters():
            torch.testing.assert_close(found["gradients"][name], parameter.grad, rtol=1e-3, atol=1e-5)
        for name, buffer in alone.network.named_buffers():
            torch.testing.assert_close(found["buffers"][name], buffer, rtol=1e-3, atol=1e-5)


def output(logits: torch.Tensor) -> Output:
    """What a network without a bottleneck says."""
    return Output(logits, torch.zeros(len(logits), 4), None, torch.ones(len(logits), 1))


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=3), st.integers(0, 99))
def test_a_class_weight_multiplies_its_samples_loss(weights: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(12, 3, generator=generator), torch.randint(0, 3, (12,), generator=generator)
    given_weights = torch.tensor(weights)
    loss = objective(output(logits), labels, beta=0.0, weights=given_weights).total
    by_hand = (given_weights[labels] * torch.nn.functional.cross_entropy(logits, labels, reduction="none")).mean()
    torch.testing.assert_close(loss, by_hand)


@given(
    st.lists(st.floats(0.001, 1), min_size=2, max_size=6),
    st.sampled_from(["balanced", "sqrt", None]),
)
def test_class_weights_keep_the_size_of_the_loss_and_the_order_asked_for(shares: list[float], how: Any) -> None:
    total = sum(shares)
    shares = [s / total for s in shares]
    weights = class_weights(shares, how)
    assert sum(w * s for w, s in zip(weights, shares, strict=True)) == pytest.approx(1)
    power = {"balanced": 1.0, "sqrt": 0.5, None: 0.0}[how]
    products = [w * s**power for w, s in zip(weights, shares, strict=True)]
    assert products == pytest.approx([products[0]] * len(products))


def test_class_weights_by_class_and_of_a_class_that_is_never_drawn() -> None:
    assert class_weights([0.5, 0.5, 0.0], {1: 3.0}) == pytest.approx((0.5, 1.5, 0.0))


@given(st.integers(1, 500), st.integers(0, 50))
def test_the_rate_starts_at_zero_peaks_once_and_ends_low(steps: int, warmup: int) -> None:
    shares = [rate_share(s, steps=warmup + steps, warmup=warmup) for s in range(warmup + steps + 1)]
    assert shares[0] == (0 if warmup else 1)
    assert max(shares) == shares[warmup] == 1
    assert shares[-1] == pytest.approx(FLOOR)
    assert all(a >= b for a, b in zip(shares[warmup:], shares[warmup + 1 :], strict=False))
