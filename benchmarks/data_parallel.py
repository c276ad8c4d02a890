"""Compare the average of gradients by one `all_reduce` with torch's `DistributedDataParallel`: time per step.

Two processes of one thread each train a network with gloo. Steps alternate in blocks, so that both see the same machine.

Run `python benchmarks/data_parallel.py`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mibf.device import to_device
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, NetworkSpec, SourceSpec
from mibf.training.data_parallel import GradientAverage
from mibf.training.loss import objective

WORKERS, SAMPLES, STEPS, BLOCKS = 2, 128, 5, 8
SPEC = NetworkSpec((SourceSpec("optical", 64), SourceSpec("radar", 2, NARROW)), classes=11)


def step(network: nn.Module, model: nn.Module, average: Callable[[], None], inputs: list[Tensor], labels: Tensor) -> None:
    """Compute the gradient of a step, averaged over the workers."""
    network.zero_grad(set_to_none=True)
    objective(model(inputs), labels, beta=1e-4).total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    average()


def worker(rank: int, folder: str) -> None:
    """Measure on one worker; the first prints the medians."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORKERS)
    steps = {}
    for name in ("DistributedDataParallel", "one all_reduce"):
        torch.manual_seed(0)
        network = to_device(MIBFNet(SPEC), torch.device("cpu")).train()
        if name == "one all_reduce":
            steps[name] = partial(step, network, network, GradientAverage(network))
        else:
            wrapped = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
            steps[name] = partial(step, network, wrapped, lambda: None)
    inputs = [torch.rand(SAMPLES, source.bands, 7, 7).to(memory_format=torch.channels_last) for source in SPEC.sources]
    labels = torch.randint(0, SPEC.classes, (SAMPLES,))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(BLOCKS + 1):
        for name, run in steps.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                run(inputs, labels)
            found[name].append((time.perf_counter() - start) / STEPS)
    if rank == 0:
        medians = [1e3 * statistics.median(seconds[1:]) for seconds in found.values()]  # the first block warms up
        for name, median in zip(found, medians, strict=True):
            print(f"{name}: {median:.1f} ms per step")
        print(f"ratio: {medians[0] / medians[1]:.3f}")
    steps.clear()
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Start the workers."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (str(Path(folder)),), nprocs=WORKERS)


if __name__ == "__main__":
    main()
