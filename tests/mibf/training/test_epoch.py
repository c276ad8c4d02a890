"""Training step tests: learning, stopping at non-finite values, exact resume, precision and class weights."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mibf.training.epoch
from mibf.device import check_precision
from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet, Output
from mibf.network.spec import NARROW, PARTS, NetworkPart, NetworkSpec, SourceSpec
from mibf.training.batch import Batch
from mibf.training.checkpoint import Checkpoint, DamagedCheckpointError
from mibf.training.ema import ExponentialMovingAverage
from mibf.training.epoch import NonFiniteError, Step, TrainState, train_epoch, validate
from mibf.training.epoch_metrics import EpochMetrics, MetricAccumulator
from mibf.training.loss import class_weights, objective
from mibf.training.optimizer import FLOOR, make_optimizer, schedule_factor

SPEC = NetworkSpec((SourceSpec("optical", 2), SourceSpec("radar", 1, NARROW)), classes=2, patch=5)
#: The same network without its random parts (noise and bottleneck).
DETERMINISTIC = replace(SPEC, without=("noise", "bottleneck"))


def batches(count: int, *, seed: int = 0, size: int = 32) -> Iterator[Batch]:
    """Yield batches of two classes that the second source separates."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        labels = generator.integers(0, 2, size)
        optical = generator.random((size, 2, 5, 5), dtype=np.float32)
        radar = generator.random((size, 1, 5, 5), dtype=np.float32) * 0.3 + 0.7 * labels[:, None, None, None]
        yield Batch((optical, radar.astype(np.float32)), labels)


def fresh(steps: int = 40, *, spec: NetworkSpec = SPEC, average: float | None = None, **given: Any) -> TrainState:
    torch.manual_seed(0)
    network = MIBFNet(spec)
    moving = None if average is None else ExponentialMovingAverage(network, decay=average)
    made = make_optimizer(network.parameters(), learning_rate=3e-3, weight_decay=1e-4, steps=steps, warmup=4)
    return TrainState(network, *made, beta=1e-4, average=moving, **given)


def epoch(state: TrainState, given_batches: Iterator[Batch]) -> float:
    return train_epoch(state, given_batches).cross_entropy


def test_forward_and_backward_of_training_are_within_ieee_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    active, seen = [False], Counter[tuple[str, bool]]()

    @contextmanager
    def recorded(_: torch.device) -> Iterator[None]:
        active[0] = True
        yield
        active[0] = False

    monkeypatch.setattr(mibf.training.epoch, "ieee_float32", recorded)
    state = fresh(spec=DETERMINISTIC)
    for module in state.network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda *_: seen.update([("forward", active[0])]))
            module.weight.register_hook(lambda _: seen.update([("backward", active[0])]))
    epoch(state, batches(2))
    assert set(seen) == {("forward", True), ("backward", True)}


def test_training_reduces_loss_and_reaches_95_percent_accuracy() -> None:
    state = fresh()
    first = epoch(state, batches(20))
    epoch(state, batches(20, seed=1))
    figures = validate(state.network, batches(5, seed=2), beta=1e-4, precision="float32")
    assert figures.cross_entropy < 0.5 * first
    assert figures.confusion.samples == 5 * 32
    assert figures.confusion.overall_accuracy > 0.95


@pytest.mark.parametrize("without", [("noise",), ("relation",), ("bottleneck",), PARTS])
def test_ablated_network_reduces_loss(without: tuple[NetworkPart, ...]) -> None:
    state = fresh(spec=replace(SPEC, without=without))
    first = epoch(state, batches(20))
    assert epoch(state, batches(20, seed=1)) < 0.5 * first
    figures = validate(state.network, batches(5, seed=2), beta=1e-4, precision="float32")
    assert (figures.rate == 0) == ("bottleneck" in without)


def test_single_source_network_reaches_95_percent_accuracy() -> None:
    state = fresh(spec=NetworkSpec(SPEC.sources[1:], classes=2, patch=5, without=("noise", "relation")))
    radar = [Batch(batch.sources[1:], batch.labels) for batch in batches(45)]
    epoch(state, iter(radar[:40]))
    assert validate(state.network, radar[40:], beta=1e-4, precision="float32").confusion.overall_accuracy > 0.95
    assert torch.equal(state.network.noise.mean_gate, torch.ones(1))


def test_same_seed_gives_identical_weights() -> None:
    one, other = fresh(), fresh()
    for state in (one, other):
        torch.manual_seed(5)
        epoch(state, batches(6))
    for a, b in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_validation_metrics_do_not_depend_on_batch_boundaries() -> None:
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
def test_nonfinite_input_raises_before_optimizer_step(poison: float) -> None:
    state = fresh()
    good, bad = batches(2)
    bad.sources[0][0, 0, 0, 0] = poison
    epoch(state, iter([good]))
    before = [p.clone() for p in state.network.parameters()]
    with pytest.raises(NonFiniteError, match="batch 0"):
        epoch(state, iter([bad]))
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))
    with pytest.raises(NonFiniteError, match="batch 2"):
        epoch(fresh(), iter([*batches(2), bad]))


def test_weights_are_unchanged_after_bad_batch_when_check_is_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where steps continue until the host checks: the optimizer skips steps from the first bad batch on."""
    monkeypatch.setitem(mibf.training.epoch._CHECK_STEPS, "cpu", 1000)
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


def test_step_check_raises_at_bad_batch_before_delayed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint written within an epoch must not include steps that the optimizer skipped."""
    monkeypatch.setitem(mibf.training.epoch._CHECK_STEPS, "cpu", 1000)
    given = list(batches(4))
    given[2].sources[0][0, 0, 0, 0] = np.nan
    checked = []

    def after_step(step: Step) -> None:
        step.check()
        checked.append(step.number)

    with pytest.raises(NonFiniteError, match="batch 2"):
        train_epoch(fresh(), given, after_step=after_step)
    assert checked == [1, 2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_network_trains_to_similar_weights() -> None:
    plain, compiled = fresh(), fresh()
    compiled.network.compile()
    for state in (plain, compiled):
        torch.manual_seed(0)
        state.network.noise.mean_gate.fill_(0.5)
        epoch(state, batches(2))
    assert plain.network.state_dict().keys() == compiled.network.state_dict().keys()
    for name, value in plain.network.named_parameters():
        assert torch.isfinite(compiled.network.get_parameter(name)).all()
        assert (compiled.network.get_parameter(name) - value).abs().max() < 0.05


def run_epoch(
    state: TrainState, number: int, *, start: int = 0, sums: MetricAccumulator | None = None
) -> tuple[list[float], EpochMetrics]:
    """Run an epoch of six steps from step `start`; return the loss of each step and the epoch metrics."""
    losses: list[float] = []
    figures = train_epoch(
        state,
        islice(batches(6, seed=number), start, None),
        start=start,
        sums=sums,
        seed=lambda step: 1000 * number + step,
        after_step=lambda step: losses.append(float(step.loss)),
    )
    return losses, figures


def assert_equal_state(one: TrainState, other: TrainState) -> None:
    """Check that weights, averaged weights and learning rate are bit-identical."""
    for (name, a), b in zip(one.network.state_dict().items(), other.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), b in zip(one.eval_network.state_dict().items(), other.eval_network.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"averaged {name}"
    assert one.schedule.get_last_lr() == other.schedule.get_last_lr()


@pytest.mark.parametrize("average", [None, 0.9])
def test_resume_at_epoch_reproduces_losses_and_state_exactly(average: float | None) -> None:
    straight, stopped = fresh(average=average), fresh(average=average)
    losses = [run_epoch(straight, number)[0] for number in range(3)]
    run_epoch(stopped, 0)
    content = Checkpoint.of(stopped, epoch=1, history=[{"epoch": 1}], identity={"of": "this"}).to_bytes()
    resumed = fresh(average=average)
    checkpoint = Checkpoint.from_bytes(content)
    checkpoint.restore(resumed)
    assert (checkpoint.epoch, checkpoint.step, checkpoint.history) == (1, 0, [{"epoch": 1}])
    assert [run_epoch(resumed, number)[0] for number in (1, 2)] == losses[1:]
    assert_equal_state(straight, resumed)


def test_resume_within_epoch_restores_metric_sums() -> None:
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
    sums = MetricAccumulator(2, torch.device("cpu"))
    assert checkpoint.sums is not None
    sums.load(checkpoint.sums)
    rest, whole = run_epoch(resumed, 0, start=checkpoint.step, sums=sums)
    assert rest == losses[4:]
    assert whole.loss == figures.loss
    assert (whole.confusion.counts == figures.confusion.counts).all()
    assert_equal_state(straight, resumed)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"mibf checkpoint 2\n"])
def test_content_that_is_not_a_checkpoint_raises(content: bytes) -> None:
    with pytest.raises(DamagedCheckpointError, match="damaged"):
        Checkpoint.from_bytes(content)


@given(st.data())
def test_truncated_or_bit_flipped_checkpoint_raises(data: st.DataObject) -> None:
    whole = CHECKPOINT
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :]
    with pytest.raises(DamagedCheckpointError):
        Checkpoint.from_bytes(damaged)


CHECKPOINT = Checkpoint.of(fresh(), epoch=0, history=[], identity={}).to_bytes()


def test_checkpoint_of_another_network_raises() -> None:
    other = fresh(spec=replace(SPEC, classes=3))
    with pytest.raises(InputError, match="does not fit"):
        Checkpoint.from_bytes(CHECKPOINT).restore(other)


def test_accumulated_gradients_equal_full_batch_gradients() -> None:
    """Use a batch of two identical halves, so that batch norm has the same statistics in a piece as in the full batch."""
    (half,) = batches(1, size=16)
    twice = Batch(tuple(np.concatenate([x, x]) for x in half.sources), np.concatenate([half.labels, half.labels]))
    whole, pieces = fresh(spec=DETERMINISTIC), fresh(spec=DETERMINISTIC, pieces=2)
    for state in (whole, pieces):
        train_epoch(state, iter([twice]))
    for (name, a), b in zip(whole.network.named_parameters(), pieces.network.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_accumulation_avoids_one_sample_pieces_and_counts_all_samples() -> None:
    state = fresh(pieces=8)
    figures = train_epoch(state, batches(2, size=9))
    assert figures.confusion.samples == 18


def test_gradient_norm_is_clipped() -> None:
    loose, tight = fresh(spec=DETERMINISTIC), fresh(spec=DETERMINISTIC, clip_grad_norm=0.01)
    norms = []
    for state in (loose, tight):
        train_epoch(state, batches(1))
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in state.network.parameters() if p.grad is not None)))
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_moving_average_of_weights_follows_formula() -> None:
    state = fresh(average=0.9)
    assert state.average is not None
    expected = {name: value.clone() for name, value in state.network.named_parameters()}

    def follow(step: Step) -> None:
        done = step.number - 1
        decay = min(0.9, (1 + done) / (10 + done))
        for name, value in state.network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach()

    train_epoch(state, batches(12), after_step=follow)
    assert state.eval_network is state.average.network
    for name, value in state.eval_network.named_parameters():
        torch.testing.assert_close(value, expected[name])


def test_float16_reduces_loss_and_checkpoint_restores_loss_scaler() -> None:
    """Test it on the CPU, although the command line does not offer float16 there."""
    state = fresh(precision="fp16")
    assert state.scaler is not None
    before = [p.clone() for p in state.network.parameters()]
    first = epoch(state, batches(5))
    assert epoch(state, batches(5, seed=1)) < first
    assert any(not torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))
    content = Checkpoint.of(state, epoch=1, history=[], identity={}).to_bytes()
    resumed = fresh(precision="fp16")
    Checkpoint.from_bytes(content).restore(resumed)
    assert resumed.scaler is not None
    assert resumed.scaler.state_dict() == state.scaler.state_dict()


def test_float16_raises_on_nonfinite_loss() -> None:
    state = fresh(precision="fp16")
    good, bad = batches(2)
    bad.sources[0][0, 0, 0, 0] = np.nan
    epoch(state, iter([good]))
    before = [p.clone() for p in state.network.parameters()]
    with pytest.raises(NonFiniteError, match="batch 0"):
        epoch(state, iter([bad]))
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))


def test_float16_on_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="fp16, which needs a GPU"):
        check_precision(torch.device("cpu"), "fp16")
    check_precision(torch.device("cpu"), "bf16")


def output(logits: torch.Tensor) -> Output:
    """Return the output of a network without a bottleneck."""
    return Output(logits, torch.zeros(len(logits), 4), None, torch.ones(len(logits), 1))


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=3), st.integers(0, 99))
def test_class_weight_multiplies_loss_of_its_samples(weights: list[float], seed: int) -> None:
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
def test_class_weights_average_to_one_and_follow_requested_power(shares: list[float], how: Any) -> None:
    total = sum(shares)
    shares = [s / total for s in shares]
    weights = class_weights(shares, how)
    assert sum(w * s for w, s in zip(weights, shares, strict=True)) == pytest.approx(1)
    power = {"balanced": 1.0, "sqrt": 0.5, None: 0.0}[how]
    products = [w * s**power for w, s in zip(weights, shares, strict=True)]
    assert products == pytest.approx([products[0]] * len(products))


def test_class_weights_apply_override_and_give_zero_to_absent_class() -> None:
    assert class_weights([0.5, 0.5, 0.0], {1: 3.0}) == pytest.approx((0.5, 1.5, 0.0))


@given(st.integers(1, 500), st.integers(0, 50))
def test_learning_rate_warms_up_from_zero_and_decays_to_floor(steps: int, warmup: int) -> None:
    shares = [schedule_factor(s, steps=warmup + steps, warmup=warmup) for s in range(warmup + steps + 1)]
    assert shares[0] == (0 if warmup else 1)
    assert max(shares) == shares[warmup] == 1
    assert shares[-1] == pytest.approx(FLOOR)
    assert all(a >= b for a, b in zip(shares[warmup:], shares[warmup + 1 :], strict=False))
