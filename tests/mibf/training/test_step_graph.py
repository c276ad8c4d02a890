"""A training step as a graph: on a CPU, whose steps are the oracle, graphs are emulated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.training.batch import Batch
from mibf.training.ema import ExponentialMovingAverage
from mibf.training.epoch import NonFiniteError, TrainState, train_epoch
from mibf.training.optimizer import make_optimizer
from mibf.training.perturbation import Perturbation
from tests.support.operations import emulated_graphs, step_operations

SPEC = NetworkSpec((SourceSpec("optical", 2), SourceSpec("radar", 1, NARROW)), classes=2, patch=5)
MIXED = Perturbation((torch.zeros(2), torch.zeros(1)), jitter=0.1, mixup=0.3)


def batches(count: int, *, size: int = 16) -> Iterator[Batch]:
    generator = np.random.default_rng(0)
    for _ in range(count):
        sources = tuple(generator.random((size, bands, 5, 5), dtype=np.float32) for bands in (2, 1))
        yield Batch(sources, generator.integers(0, 2, size))


def fresh(*, graphs: bool, **given: Any) -> TrainState:
    torch.manual_seed(0)
    network = MIBFNet(SPEC, dropout=0.1)
    made = make_optimizer(network.parameters(), learning_rate=3e-3, weight_decay=1e-4, steps=40, warmup=2)
    average = ExponentialMovingAverage(network, decay=0.9)
    return TrainState(
        network, *made, beta=1e-4, average=average, capture=emulated_graphs(network) if graphs else None, **given
    )


def weights(state: TrainState, found: Iterator[Batch] | list[Batch], *, epochs: int = 1) -> list[Tensor]:
    """Train with random numbers that depend on the step alone; return the weights, the averaged ones and the metrics."""
    metrics = []
    for epoch in range(epochs):
        figures = train_epoch(state, found, start=0, seed=lambda step: 100 * epoch + step)  # noqa: B023  # called at once
        metrics += [figures.loss, figures.cross_entropy, figures.rate, figures.confusion.overall_accuracy]
    assert state.average is not None
    own, average = state.network.state_dict().values(), state.average.network.state_dict().values()
    return [*own, *average, torch.tensor(metrics, dtype=torch.float64)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "given",
    [{}, {"perturbation": MIXED}, {"precision": "bf16", "clip_grad_norm": 0.1}, {"pieces": 2}, {"pieces": 3}],
)
def test_graph_trains_as_steps_without_it(given: dict[str, Any]) -> None:
    found = list(batches(5))
    state = fresh(graphs=True, **given)
    assert_equal(weights(state, found, epochs=2), weights(fresh(graphs=False, **given), found, epochs=2))
    assert state.capture is not None


def test_batches_of_another_size_are_computed_without_the_graph() -> None:
    found = [*batches(2), *batches(1, size=7), *batches(2)]
    assert_equal(weights(fresh(graphs=True), found), weights(fresh(graphs=False), found))


def test_capture_without_seeds_leaves_the_random_state() -> None:
    one, other = (fresh(graphs=graphs) for graphs in (True, False))
    for state in (one, other):
        torch.manual_seed(3)
        train_epoch(state, batches(3))
    assert_equal(list(one.network.state_dict().values()), list(other.network.state_dict().values()))


def refuses(work: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    del work
    raise RuntimeError("operation not permitted when stream is capturing")


def wrong(work: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """Capture a graph that computes another loss."""

    def replay() -> tuple[Tensor, ...]:
        loss, *others = work()
        return 1.1 * loss, *others

    return replay


@pytest.mark.parametrize(
    ("capture", "cause"),
    [(refuses, r"cannot be used as a CUDA graph \(operation not"), (wrong, r"CUDA graph \(it differs by")],
)
def test_steps_run_one_by_one_where_a_graph_cannot_be_used(capture: Any, cause: str) -> None:
    state, found = fresh(graphs=False), list(batches(3))
    state.capture = capture
    with pytest.warns(UserWarning, match=cause):
        trained = weights(state, found)
    assert_equal(trained, weights(fresh(graphs=False), found))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is tried once
        train_epoch(state, found)


def test_nonfinite_value_in_a_graph_stops_training_at_its_batch() -> None:
    found = list(batches(4))
    found[2].sources[0][0, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="batch 2: "):
        train_epoch(fresh(graphs=True), found)


def counted(state: TrainState, done: list[int]) -> None:
    """Let the state capture its steps, and count their replays."""
    emulate = emulated_graphs(state.network)

    def capture(work: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
        replay = emulate(work)
        return lambda: done.append(1) or replay()  # type: ignore[func-returns-value]  # append is None

    state.capture = capture


@pytest.mark.parametrize(("pieces", "replays"), [(1, 3), (2, 6), (3, 6)])
def test_pieces_of_the_first_ones_size_use_the_graph(pieces: int, replays: int) -> None:
    """Three pieces of 16 samples have 5, 5 and 6."""
    done: list[int] = []
    state = fresh(graphs=False, pieces=pieces)
    counted(state, done)
    train_epoch(state, batches(3))
    assert len(done) == replays + 1  # and once to be compared with its step


def test_graph_of_a_scaled_loss_skips_steps_that_overflow_as_steps_without_it() -> None:
    found, done, weights_before = list(batches(4)), list[int](), []
    trained = []
    for graphs in (True, False):
        state = fresh(graphs=False, precision="fp16")
        state.scaler = GradScaler("cpu", init_scale=2.0**24, backoff_factor=2.0**-12)
        if graphs:
            counted(state, done)
        first = [p.detach().clone() for p in state.network.parameters()]
        train_epoch(state, found[:1], seed=lambda step: step)
        weights_before.append(all(torch.equal(a, b) for a, b in zip(first, state.network.parameters(), strict=True)))
        assert state.scaler.get_scale() == 2.0**12
        trained.append(weights(state, found))
        assert state.scaler.get_scale() == 2.0**12
    assert weights_before == [True, True], "the gradient of the first step overflows"
    assert len(done) == 1 + 1 + len(found)
    assert_equal(*trained)


def test_default_is_no_graph_on_a_cpu() -> None:
    state = fresh(graphs=False)
    assert replace(state, capture="auto").capture is None


def test_step_takes_few_operations_outside_its_graph() -> None:
    """Most of a step's time on a GPU would otherwise be that of launching its operations."""
    spec = NetworkSpec((SourceSpec("optical", 64), SourceSpec("radar", 2, NARROW)), classes=11)
    generator = np.random.default_rng(0)
    batch = Batch(tuple(generator.random((8, b, 7, 7), dtype=np.float32) for b in (64, 2)), np.arange(8))
    counts = {}
    for graphs in (True, False):
        torch.manual_seed(0)
        network = MIBFNet(spec)
        made = make_optimizer(network.parameters(), learning_rate=1e-3, weight_decay=1e-4, steps=40, warmup=2)
        average = ExponentialMovingAverage(network, decay=0.9)
        state = TrainState(
            network,
            *made,
            beta=1e-4,
            average=average,
            clip_grad_norm=1.0,
            capture=emulated_graphs(network) if graphs else None,
        )
        counts[graphs] = step_operations(state, batch)
    assert counts[True] <= 60
    assert counts[False] <= 360
