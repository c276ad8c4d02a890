"""Helpers of the GPU checks: the device, the file of figures, rates and learnable tiles."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

from mibf.device import Precision, to_device
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, WIDE, NetworkPart, NetworkSpec, SourceSpec
from mibf.training.batch import Batch
from mibf.training.epoch import TrainState, train_epoch
from mibf.training.optimizer import make_optimizer
from pipeline.grid import Window
from tests.support.synthetic import synthetic_scene

#: The device to check. `MIBF_GPU_DEVICE=cpu` runs the same code at a small size, to check the checks.
DEVICE = torch.device(os.environ.get("MIBF_GPU_DEVICE", "cuda"))
#: The file of figures.
FIGURES = Path(os.environ.get("MIBF_GPU_FIGURES", "gpu.json"))
ON_GPU = DEVICE.type == "cuda"
#: Bands of the sources of the networks that are checked.
BANDS = ((64, 2), (6, 2))
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
#: Kernels that a profile lists.
TOP_KERNELS = 10
#: Values of the synthetic scenes are below this, see `pipeline.scenes.synthetic`.
BRIGHTEST = 6000


class Figures:
    """Figures by part, written to a file after each addition: a failure of a later part loses none of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, Any] = {}

    def add(self, part: str, **figures: Any) -> None:
        """Add figures to a part and write the file."""
        self.parts.setdefault(part, {}).update(figures)
        partial = self.path.with_name(f"{self.path.name}.part")
        partial.write_text(json.dumps(self.parts, indent=1) + "\n", "utf-8")
        partial.replace(self.path)

    def lines(self) -> Iterator[str]:
        """Format the figures, one line per part; lists are in the file only."""
        for part, figures in self.parts.items():
            values = (f"{name} {_short(value)}" for name, value in figures.items() if not isinstance(value, list | dict))
            yield f"{part}: {', '.join(values)}"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def wait() -> None:
    """Wait until the device has finished all queued work."""
    if ON_GPU:
        torch.cuda.synchronize()


@dataclass
class Memory:
    """Peak of the device memory that tensors took, in bytes; None on a CPU."""

    peak: int | None = None


@contextmanager
def peak_memory() -> Iterator[Memory]:
    """Measure the peak of the device memory inside the block."""
    memory = Memory()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield memory
    if ON_GPU:
        memory.peak = torch.cuda.max_memory_allocated()


def profiled(work: Callable[[], object]) -> dict[str, Any]:
    """Profile a call: device time, the kernels that take most of it, and the number of calls of the CUDA runtime."""
    work()
    wait()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_GPU else [])]) as profiler:
        started = time.perf_counter()
        work()
        wait()
        seconds = time.perf_counter() - started
    events = profiler.key_averages()

    def spent(event: Any) -> float:
        return float(event.self_device_time_total if ON_GPU else event.self_cpu_time_total)

    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA] if ON_GPU else list(events)
    kernels.sort(key=spent, reverse=True)
    runtime = {e.key: e.count for e in events if e.key.startswith("cu")}
    return {
        "seconds": seconds,
        "kernel_seconds": sum(map(spent, kernels)) / 1e6,
        "kernels": sum(e.count for e in kernels),
        "launches": sum(count for name, count in runtime.items() if "Launch" in name),
        "copies": sum(count for name, count in runtime.items() if "Memcpy" in name),
        "waits": sum(count for name, count in runtime.items() if "Synchronize" in name),
        "runtime": runtime,
        "top": [{"name": e.key[:160], "count": e.count, "microseconds": spent(e)} for e in kernels[:TOP_KERNELS]],
    }


def rate(work: Callable[[], object], units: float, *, seconds: float) -> float:
    """Call a function once as a warm-up, then repeatedly for some seconds; return units per second."""
    work()
    wait()
    started, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds or not calls:
        work()
        wait()
        calls += 1
        elapsed = time.perf_counter() - started
    return units * calls / elapsed


def spec_with(bands: Sequence[int], *, classes: int = 4, without: tuple[NetworkPart, ...] = ()) -> NetworkSpec:
    """Return the specification of a network as `mibf train` makes it: the first branch wide, the others narrow."""
    sources = tuple(SourceSpec(f"source{i + 1}", b, NARROW if i else WIDE) for i, b in enumerate(bands))
    return NetworkSpec(sources, classes=classes, without=without)


def learnable_tile(spec: NetworkSpec, side: int, *, row: int = 0) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Return a tile with its halo, normalized, and the class positions of its pixels.

    Only all sources together distinguish the classes. All tiles belong to one scene; `row` is the first one of the tile.
    """
    reach = side + 2 * spec.halo
    scene = synthetic_scene(*(s.bands for s in spec.sources), shape=(row + reach, reach))
    window = Window(row, 0, reach, reach)
    sources = [scene.values(i, window).astype(np.float32) / BRIGHTEST for i in range(len(spec.sources))]
    inner = Window(row + spec.halo, spec.halo, side, side)
    return sources, scene.truth(inner).astype(np.int64) - 1


def patches(
    spec: NetworkSpec, sources: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], pixels: NDArray[np.int64]
) -> Batch:
    """Cut the patches around pixels, given as (row, column) pairs (B, 2), from a tile with its halo."""
    rows, columns = pixels.T
    cut = []
    for values in sources:
        views = np.lib.stride_tricks.sliding_window_view(values, (spec.patch, spec.patch), axis=(1, 2))
        cut.append(np.ascontiguousarray(views[:, rows, columns].transpose(1, 0, 2, 3)))  # (B, C, p, p)
    return Batch(tuple(cut), labels[rows, columns])


def batches_of(spec: NetworkSpec, *, steps: int, size: int, side: int = 192, seed: int = 0) -> list[Batch]:
    """Return random batches of a learnable tile."""
    sources, labels = learnable_tile(spec, side)
    drawn = np.random.default_rng(seed).integers(0, side, (steps, size, 2))
    return [patches(spec, sources, labels, pixels) for pixels in drawn]


def train_state(spec: NetworkSpec, device: torch.device, *, steps: int, precision: Precision = "float32") -> TrainState:
    """Return a network in training, in the same initial state on every device."""
    torch.manual_seed(0)
    network = to_device(MIBFNet(spec), device)
    optimizer, schedule = make_optimizer(
        network.parameters(), learning_rate=2e-3, weight_decay=5e-4, steps=steps, warmup=max(1, steps // 20)
    )
    return TrainState(network, optimizer, schedule, beta=1e-4, precision=precision)


def trained_network(spec: NetworkSpec, *, steps: int, size: int = 256) -> MIBFNet:
    """Return a network on the CPU that was trained on the device until it knows the classes of a learnable tile."""
    state = train_state(spec, DEVICE, steps=steps)
    train_epoch(state, batches_of(spec, steps=steps, size=size), seed=lambda step: step)
    network = MIBFNet(spec).eval()
    network.load_state_dict(state.network.state_dict())
    return network
