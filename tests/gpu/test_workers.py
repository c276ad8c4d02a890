"""Two data-parallel workers on the devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mibf.device import ieee_float32
from mibf.training.epoch import TrainState, train_epoch
from mibf.training.sync_batchnorm import synchronize
from tests.support.gpu import BANDS, DEVICE, ON_GPU, Figures, batches_of, spec_with, train_state

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]
STEPS, SIZE = 4, 128


def device_of(rank: int, backend: str) -> torch.device:
    return torch.device("cuda", rank) if backend == "nccl" else DEVICE


def state_on(device: torch.device) -> TrainState:
    """A network in training without random numbers, which differ between workers."""
    return train_state(spec_with(BANDS[1], without=("noise", "bottleneck")), device, steps=STEPS)


def worker(rank: int, backend: str, folder: str) -> None:
    """Train on half of every batch and save the weights."""
    torch.backends.cudnn.deterministic = True
    device = device_of(rank, backend)
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    state = state_on(device)
    synchronize(state.network)
    ids = [device] if ON_GPU else None
    state.model = DistributedDataParallel(state.network, device_ids=ids, broadcast_buffers=False)
    half = slice(rank * SIZE // 2, (rank + 1) * SIZE // 2)
    batches = batches_of(state.network.spec, steps=STEPS, size=SIZE)
    own = [type(b)(tuple(x[half] for x in b.sources), b.labels[half]) for b in batches]
    with ieee_float32(device):
        loss = train_epoch(state, own, samples=SIZE).loss
    torch.save({"loss": loss, "weights": state.network.state_dict()}, f"{folder}/{rank}.pt")
    del state  # before the group: see `tests.support.distributed.two_workers`
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_two_workers_train_as_one(backend: str, figures: Figures, tmp_path: Path) -> None:
    if backend == "nccl" and (not ON_GPU or torch.cuda.device_count() < 2):
        pytest.skip("NCCL needs two GPUs for two workers")
    torch.multiprocessing.spawn(worker, (backend, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True, map_location="cpu") for rank in (0, 1))
    state = state_on(DEVICE)
    with ieee_float32(DEVICE):
        loss = train_epoch(state, batches_of(state.network.spec, steps=STEPS, size=SIZE)).loss
    alone = {name: values.cpu() for name, values in state.network.state_dict().items()}
    different = [name for name, values in first["weights"].items() if not torch.equal(values, second["weights"][name])]
    assert not different
    difference = max(float((first["weights"][name] - values).abs().max()) for name, values in alone.items())
    figures.add(f"two workers, {backend}", loss=abs(first["loss"] / loss - 1), weight_difference=difference)
    assert first["loss"] == pytest.approx(loss, rel=1e-3)
