"""Two data-parallel workers: gradients averaged as by torch's wrapper, with and without graphs, and workers that fail.

All cases run in one pair of processes, in the same order on both workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mibf.distributed import average_over_workers
from mibf.errors import InputError
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.training.batch import Batch
from mibf.training.epoch import NonFiniteError, TrainState, train_epoch
from mibf.training.loss import objective
from mibf.training.optimizer import make_optimizer
from mibf.training.sync_batchnorm import synchronize
from tests.support.distributed import two_workers
from tests.support.operations import emulated_graphs, step_operations

pytestmark = [pytest.mark.slow]
SPEC = NetworkSpec((SourceSpec("optical", 2), SourceSpec("radar", 1, NARROW)), classes=2, patch=5)
#: The same network without its random parts.
DETERMINISTIC = replace(SPEC, without=("noise", "bottleneck"))
SIZE, STEPS = 32, 3


def batches(count: int = STEPS) -> list[Batch]:
    """Batches of all workers."""
    generator = np.random.default_rng(0)
    sizes = [(SIZE, bands, 5, 5) for bands in (2, 1)]
    return [
        Batch(tuple(generator.random(size, dtype=np.float32) for size in sizes), generator.integers(0, 2, SIZE))
        for _ in range(count)
    ]


def part(rank: int, first: int, count: int = STEPS) -> list[Batch]:
    """A worker's part of them, if the first one has so many samples of each."""
    own = slice(0, first) if rank == 0 else slice(first, SIZE)
    return [Batch(tuple(x[own] for x in batch.sources), batch.labels[own]) for batch in batches(count)]


def fresh(*, spec: NetworkSpec = SPEC, seed: int = 0, **given: Any) -> TrainState:
    torch.manual_seed(seed)
    network = MIBFNet(spec).to(memory_format=torch.channels_last)
    made = make_optimizer(network.parameters(), learning_rate=3e-3, weight_decay=1e-4, steps=10, warmup=1)
    return TrainState(network, *made, beta=1e-4, **given)


def graphs(**given: Any) -> TrainState:
    state = fresh(**given)
    state.capture = emulated_graphs(state.network)
    return state


def noise_seed(rank: int) -> Callable[[int], int]:
    return lambda step: 10 * step + rank


def train(state: TrainState, rank: int, *, first: int = SIZE // 2) -> dict[str, Any]:
    """Train; return the weights and buffers, the loss, the gate of this worker alone, and whether there was a graph."""
    gates: list[Tensor] = []
    observe = state.network.noise.observe
    state.network.noise.observe = lambda gate: (observe(gate), gates.append(state.network.noise.mean_gate.clone()))[0]  # type: ignore[method-assign]  # records
    loss = train_epoch(state, part(rank, first), samples=SIZE, seed=noise_seed(rank)).loss
    state.network.noise.observe = observe  # type: ignore[method-assign]  # as above
    found = {name: values.clone() for name, values in state.network.state_dict().items()}
    return {"state": found, "loss": loss, "gate": gates[-1], "graph": int(state.capture is not None)}


def wrapped(rank: int, *, first: int = SIZE // 2, pieces: int = 1, clip: float | None = None) -> dict[str, Any]:
    """Train as `train` does, with torch's own data-parallel wrapper: the oracle."""
    state = fresh()
    network = state.network.train()
    model = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
    for step, batch in enumerate(part(rank, first)):
        torch.manual_seed(noise_seed(rank)(step))
        state.optimizer.zero_grad(set_to_none=True)
        own = len(batch.labels)
        bounds = [own * i // pieces for i in range(pieces + 1)]
        for begin, end in pairwise(bounds):
            with nullcontext() if end == own else model.no_sync():
                labels = torch.from_numpy(batch.labels[begin:end])
                output = model([torch.from_numpy(x[begin:end]) for x in batch.sources])
                scale = (end - begin) / own * (own * 2 / SIZE)
                (objective(output, labels, beta=1e-4).total * scale).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        state.optimizer.step()
        state.schedule.step()
        average_over_workers([network.noise.mean_gate])
    average_over_workers(network.buffers())
    return {"state": {name: values.clone() for name, values in network.state_dict().items()}}


def refuses(work: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    del work
    raise RuntimeError("operation not permitted when stream is capturing")


def one_refuses(rank: int) -> dict[str, Any]:
    lines: list[str] = []
    state = graphs(report=lines.append)
    if rank == 1:
        state.capture = refuses
    return train(state, rank) | {"lines": len(lines)}


def count_operations(rank: int) -> dict[str, Any]:
    given = {"clip_grad_norm": 1.0}
    (batch,) = part(rank, SIZE // 2, 1)
    return {
        name: step_operations(make(precision=precision, **given), batch, samples=SIZE)
        for name, make, precision in (("graph", graphs, "float32"), ("fp16", graphs, "fp16"), ("steps", fresh, "float32"))
    }


def start_differently(rank: int) -> dict[str, Any]:
    state = fresh(seed=rank)
    before = [p.clone() for p in state.network.parameters()]
    with pytest.raises(InputError, match=r"network of worker 1 does not start with the weights of worker 0; .* same seed"):
        train(state, rank)
    return {"unchanged": all(torch.equal(a, b) for a, b in zip(before, state.network.parameters(), strict=True))}


def stop_at_bad_batch(rank: int) -> dict[str, Any]:
    """Only the second worker's third batch is bad; both stop there."""
    found = part(rank, SIZE // 2)
    if rank == 1:
        found[2].sources[0][0, 0, 0, 0] = np.nan
    state = graphs()
    with pytest.raises(NonFiniteError, match="batch 2: "):
        train_epoch(state, found, samples=SIZE, seed=noise_seed(rank))
    return {"state": dict(state.network.named_parameters())}


def synchronized(rank: int) -> dict[str, Any]:
    state = graphs(spec=DETERMINISTIC)
    synchronize(state.network)
    loss = train_epoch(state, part(rank, 20, 1), samples=SIZE).loss
    gradients = {name: p.grad for name, p in state.network.named_parameters()}
    buffers = dict(state.network.named_buffers())
    return {"loss": loss, "gradients": gradients, "buffers": buffers, "graph": int(state.capture is not None)}


CASES: dict[str, Callable[[int], dict[str, Any]]] = {
    "wrapper": wrapped,
    "steps": lambda rank: train(fresh(), rank),
    "graph": lambda rank: train(graphs(), rank),
    "one refuses": one_refuses,
    "wrapper, pieces": lambda rank: wrapped(rank, pieces=2, clip=0.1),
    "graph, pieces": lambda rank: train(graphs(pieces=2, clip_grad_norm=0.1), rank),
    "wrapper, unequal": lambda rank: wrapped(rank, first=20),
    "graph, unequal": lambda rank: train(graphs(), rank, first=20),
    "steps, fp16": lambda rank: train(fresh(precision="fp16"), rank),
    "graph, fp16": lambda rank: train(graphs(precision="fp16"), rank),
    "operations": count_operations,
    "other weights": start_differently,
    "bad batch": stop_at_bad_batch,
    "synchronized": synchronized,
}


def _all_cases(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: case(rank) for name, case in CASES.items()}
    if rank == 0:  # the other one ends, as if it had failed
        with pytest.raises(RuntimeError) as raised:
            train(fresh(), rank)
        found["alone"] = {"message": len(str(raised.value))}
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each worker found in every case."""
    return two_workers(_all_cases, tmp_path_factory.mktemp("workers"))


def assert_equal(workers: list[dict[str, Any]], one: str, other: str, *, keys: Sequence[str] = ()) -> None:
    """Check that weights and buffers of two cases are the same bits, and the workers' also."""
    first, *others = [worker[case]["state"] for worker in workers for case in (one, other)]
    for state in others:
        assert state.keys() == first.keys()
        assert not [name for name, values in first.items() if not torch.equal(values, state[name])]
    for key in keys:
        assert all(worker[one][key] == worker[other][key] for worker in workers)


def test_steps_and_graphs_have_the_bits_of_the_wrapper(found: list[dict[str, Any]]) -> None:
    assert_equal(found, "wrapper", "steps")
    assert_equal(found, "steps", "graph", keys=["loss"])
    assert [(worker["steps"]["graph"], worker["graph"]["graph"]) for worker in found] == [(0, 1)] * 2


def test_pieces_and_clipping_have_the_bits_of_the_wrapper(found: list[dict[str, Any]]) -> None:
    assert_equal(found, "wrapper, pieces", "graph, pieces")


def test_unequal_parts_have_the_bits_of_the_wrapper(found: list[dict[str, Any]]) -> None:
    assert_equal(found, "wrapper, unequal", "graph, unequal")


def test_scaled_loss_has_the_same_bits_with_a_graph(found: list[dict[str, Any]]) -> None:
    assert_equal(found, "steps, fp16", "graph, fp16", keys=["loss"])
    assert all(worker["graph, fp16"]["graph"] for worker in found)


def test_no_worker_uses_a_graph_if_one_cannot(found: list[dict[str, Any]]) -> None:
    assert_equal(found, "steps", "one refuses", keys=["loss"])
    assert [(worker["one refuses"]["graph"], worker["one refuses"]["lines"]) for worker in found] == [(0, 0), (0, 1)]


def test_step_takes_few_operations_outside_its_graph(found: list[dict[str, Any]]) -> None:
    for worker in found:
        counts = worker["operations"]
        assert counts["graph"] <= 60
        assert counts["fp16"] <= 120
        assert counts["steps"] <= 400


def test_workers_with_different_weights_are_refused(found: list[dict[str, Any]]) -> None:
    assert all(worker["other weights"]["unchanged"] for worker in found)


def test_all_workers_stop_at_the_bad_batch_of_one(found: list[dict[str, Any]]) -> None:
    first, second = (worker["bad batch"]["state"] for worker in found)
    assert all(torch.equal(values, second[name]) for name, values in first.items())
    assert all(torch.isfinite(values).all() for values in first.values())


def test_worker_whose_peer_has_ended_stops(found: list[dict[str, Any]]) -> None:
    assert found[0]["alone"]["message"]


def test_mean_gate_is_averaged(found: list[dict[str, Any]]) -> None:
    one, other = (worker["steps"] for worker in found)
    assert not torch.equal(one["gate"], other["gate"])
    torch.testing.assert_close(one["state"]["noise.mean_gate"], (one["gate"] + other["gate"]) / 2)


def test_workers_with_synchronized_batch_norm_match_one_worker_without_a_graph(found: list[dict[str, Any]]) -> None:
    alone = fresh(spec=DETERMINISTIC)
    loss = train_epoch(alone, batches(1)).loss
    for worker in found:
        own = worker["synchronized"]
        assert not own["graph"]
        assert own["loss"] == pytest.approx(loss, rel=1e-4)
        for name, parameter in alone.network.named_parameters():
            assert parameter.grad is not None
            # Rounding may put a value on the other side of a ReLU, which is seen in the gradient of one channel.
            assert (own["gradients"][name] - parameter.grad).norm() < 2e-2 * parameter.grad.norm() + 1e-5
        for name, buffer in alone.network.named_buffers():
            torch.testing.assert_close(own["buffers"][name], buffer, rtol=1e-3, atol=1e-5)
