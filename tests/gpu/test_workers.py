"""Two data-parallel workers on the devices: on one GPU by gloo, on two by NCCL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mibf.device import Precision, ieee_float32
from mibf.training.batch import Batch
from mibf.training.epoch import TrainState, train_epoch
from mibf.training.sync_batchnorm import synchronize
from tests.support.gpu import BANDS, DEVICE, ON_GPU, Figures, batches_of, profiled, spec_with, train_state

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]
STEPS, SIZE = 4, 128
TRAINED: tuple[Precision, ...] = ("float32", "bf16", "fp16")


def device_of(rank: int, backend: str) -> torch.device:
    return torch.device("cuda", rank) if backend == "nccl" else DEVICE


def state_on(device: torch.device) -> TrainState:
    """A network in training without random numbers, which differ between workers."""
    return train_state(spec_with(BANDS[1], without=("noise", "bottleneck")), device, steps=STEPS)


def part(rank: int, state: TrainState) -> list[Batch]:
    """A worker's half of every batch."""
    half = slice(rank * SIZE // 2, (rank + 1) * SIZE // 2)
    batches = batches_of(state.network.spec, steps=STEPS, size=SIZE)
    return [Batch(tuple(x[half] for x in b.sources), b.labels[half]) for b in batches]


def synchronized(rank: int, device: torch.device) -> dict[str, Any]:
    """Train with batch norm over both workers."""
    state = state_on(device)
    synchronize(state.network)
    loss = train_epoch(state, part(rank, state), samples=SIZE).loss
    return {"loss": loss, "weights": state.network.state_dict()}


def with_graphs(rank: int, device: torch.device) -> dict[str, Any]:
    """Train with and without graphs in every precision; count the launches of a step outside its graph."""
    found: dict[str, Any] = {}
    for precision in TRAINED:
        for graphs in (True, False):
            state = train_state(spec_with(BANDS[1]), device, steps=STEPS, precision=precision)
            if not graphs:
                state.capture = None
            own = part(rank, state)
            loss = train_epoch(state, own, samples=SIZE, seed=lambda step: 10 * step + rank).loss
            found[f"{precision}, {graphs}"] = {
                "loss": loss,
                "weights": {name: values.detach().clone() for name, values in state.network.named_parameters()},
                "graph": int(state.capture is not None),
            }
            if graphs:
                launches = profiled(lambda state=state, own=own: train_epoch(state, own[:1], samples=SIZE))["launches"]
                found[f"{precision}, {graphs}"]["launches"] = launches
    return found


def worker(rank: int, work: Callable[[int, torch.device], dict[str, Any]], backend: str, folder: str) -> None:
    """Do some work as one of two workers, and save what it returns."""
    torch.backends.cudnn.deterministic = True
    device = device_of(rank, backend)
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    with ieee_float32(device):
        torch.save(work(rank, device), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def workers(work: Callable[[int, torch.device], dict[str, Any]], backend: str, folder: Path) -> list[dict[str, Any]]:
    """Return what each of two workers found, with its tensors on the CPU."""
    if backend == "nccl" and (not ON_GPU or torch.cuda.device_count() < 2):
        pytest.skip("NCCL needs two GPUs for two workers")
    torch.multiprocessing.spawn(worker, (work, backend, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True, map_location="cpu") for rank in (0, 1)]


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert not [name for name, values in first.items() if not torch.equal(values, second[name])]


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_two_workers_train_as_one(backend: str, figures: Figures, tmp_path: Path) -> None:
    first, second = workers(synchronized, backend, tmp_path)
    state = state_on(DEVICE)
    with ieee_float32(DEVICE):
        loss = train_epoch(state, batches_of(state.network.spec, steps=STEPS, size=SIZE)).loss
    alone = {name: values.cpu() for name, values in state.network.state_dict().items()}
    assert_same(first["weights"], second["weights"])
    difference = max(float((first["weights"][name] - values).abs().max()) for name, values in alone.items())
    figures.add(f"two workers, {backend}", loss=abs(first["loss"] / loss - 1), weight_difference=difference)
    assert first["loss"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_graphs_of_two_workers_train_as_steps_without_them(backend: str, figures: Figures, tmp_path: Path) -> None:
    first, second = workers(with_graphs, backend, tmp_path)
    for precision in TRAINED:
        graph, steps = (first[f"{precision}, {graphs}"] for graphs in (True, False))
        assert_same(graph["weights"], second[f"{precision}, True"]["weights"])
        ours, theirs = (torch.cat([v.double().flatten() for v in found["weights"].values()]) for found in (graph, steps))
        difference, loss = float((ours - theirs).norm() / theirs.norm()), abs(graph["loss"] / steps["loss"] - 1)
        part = f"graph of two workers, {backend}, {precision}"
        figures.add(part, loss=loss, weights=difference, launches=graph["launches"])
        assert loss < 1e-3
        assert difference < 1e-2
        if ON_GPU:
            assert graph["graph"], "the step could not be captured: see the warning"
            assert second[f"{precision}, True"]["graph"]
            assert graph["launches"] <= 120
        assert not steps["graph"]
