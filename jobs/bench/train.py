"""mibf bench train: training compared with the authors' loop, and two workers compared with one, in one run.

The authors' loop (`jobs.bench.harness.baseline`) runs torch's `DataLoader` in its own process, because loader workers
would compete with the network for the cores. It starts with normalized arrays in memory; mibf reads its stores.

Workers are Ray Train workers with one thread each; two workers share the samples of a step. Two independent single-worker
trainings at the same time on the same machine show how much of the loss is due to the machine: shared memory, caches and
clock rate. The same with half the samples per step shows the effect of the smaller batch; the rest is the cost of
training together. Rates are those of the second epoch; the first one is the warm-up.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from jobs.bench.batches import GROUP_WINDOWS, Prepared, Training
from jobs.bench.harness.baseline import PLAIN_BATCH, SLAB, Patches, PlainNetwork, PlainSteps
from jobs.bench.harness.processes import process_pool
from jobs.bench.harness.random_workspace import random_workspace
from jobs.bench.harness.table import Row, lines, row
from jobs.bench.harness.timing import Case, Timing, measure
from jobs.bench.network import machine
from jobs.config.config import Config
from jobs.runtime.progress import info, progress_bar, warn
from jobs.runtime.worker_resources import WorkerResources
from jobs.train.settings import Settings, WorkerContext
from jobs.train.step_plan import StepPlan
from jobs.train.worker_loop import run
from jobs.workflow.workspace import Workspace
from mibf.device import best_device, check_precision
from mibf.errors import InputError
from mibf.training.optimizer import schedule_factor
from pipeline.io import storage

AUTHORS, FLOAT32, BF16 = "authors' loop", "mibf, float32", "mibf, bf16"
SMALL = f"mibf, float32, batch size {PLAIN_BATCH}"
ONE, TWO, INDEPENDENT, INDEPENDENT_HALF = "one worker", "two workers", "two independent", "two independent, half the batch"
#: Side in pixels of the random scene that workers train on for complete epochs.
WORKERS_SIDE = 256
EPOCHS = 2
#: Seconds that a training waits for the other one before its last epoch; then it fails.
BARRIER_TIMEOUT = 3600
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Result:
    """Result of the benchmark; rates in samples per second."""

    name: str
    batch: int  #: samples per step, unless a row says otherwise
    steps: int  #: steps timed in one process
    epoch: int | None  #: samples per epoch of the workers
    precision: str  #: of the workers
    rows: list[Row]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return table(self).split("\n")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "result": asdict(self)}


def bench_train(
    config: Config | None,
    *,
    bands: list[int],
    rounds: int,
    steps: int,
    workers: bool,
    side: int = SLAB,
    workers_side: int = WORKERS_SIDE,
) -> Result:
    """Benchmark training of a prepared configuration with its settings or, without one, of random scenes with the defaults.

    In one process `steps` steps are timed; workers, if requested, train two epochs, which
    `sampling.epoch_fraction` can shorten. Only temporary files are written.

    Raises:
        InputError: the configuration is not prepared, or `RAY_ADDRESS` names a cluster.
    """
    info("keep the machine idle during the benchmark: other load affects the measurements")
    if workers and os.environ.get("RAY_ADDRESS", "local") != "local":
        raise InputError("RAY_ADDRESS names a cluster; this benchmark measures one machine: unset it, or give --no-workers.")
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        if config is None:
            prepared = Prepared.of(random_workspace(_new_folder(folder, "large"), bands=bands, side=side))
            shared = (
                Prepared.of(random_workspace(_new_folder(folder, "small"), bands=bands, side=workers_side))
                if workers
                else None
            )
            name = f"{side} x {side} pixels of random values, {prepared.title}"
        else:
            prepared = Prepared.of(config)
            shared = prepared if workers else None
            name = f"{config.name!r}, {prepared.title}"
        rows = _one_process(prepared, rounds=rounds, steps=steps)
        if shared is not None:
            rows += _workers(shared, folder, rounds=rounds)
        train = prepared.config.train
        rate = prepared.config.sampling.epoch_fraction
        epoch = None if shared is None else StepPlan.of(train, rate, shared.sampler().samples()).full_pass * train.batch_size
        return Result(name, train.batch_size, steps, epoch, train.precision, rows)


def _new_folder(folder: str, name: str) -> Path:
    path = Path(folder, name)
    path.mkdir()
    return path


def _one_process(prepared: Prepared, *, rounds: int, steps: int) -> list[Row]:
    """Measure the authors' loop and mibf training on the device that training would use."""
    section, device = prepared.config.train, best_device()
    check_precision(device, "bf16")
    frequencies = prepared.config.sampling.frequencies
    sampler = prepared.sampler(
        frequencies=frequencies,
        augment=section.augment,
        source_dropout=section.source_dropout,
        group_windows=GROUP_WINDOWS,
    )
    workspace = Workspace.of(prepared.config)  # nothing is written there
    ways: dict[str, dict[str, Any]] = {
        FLOAT32: {"precision": "float32"},
        BF16: {"precision": "bf16"},
        SMALL: {"precision": "float32", "batch_size": PLAIN_BATCH},
    }
    samples = steps * section.batch_size
    ours = {}
    for what, changed in ways.items():
        train = section.model_copy(update=changed)
        ours[what] = Training(prepared.settings(workspace, train), sampler, samples // train.batch_size)
    cases = [Case(AUTHORS, samples // PLAIN_BATCH * PLAIN_BATCH, _AuthorsLoop(prepared, samples // PLAIN_BATCH, device))]
    cases += [Case(what, training.steps * training.settings.train.batch_size, training) for what, training in ours.items()]
    with progress_bar("bench train, one process", rounds + 1, unit="rounds") as advance:
        rates = measure(cases, rounds=rounds, each=lambda: advance(1))
    found = [row(rates[AUTHORS], rates[AUTHORS])]
    return found + [row(rates[what], rates[AUTHORS], waits=training.waits[1:]) for what, training in ours.items()]


class _AuthorsLoop:
    """Training steps like those of the released code: one process, float32, `PLAIN_BATCH` samples per step."""

    def __init__(self, prepared: Prepared, steps: int, device: torch.device) -> None:
        self.patches = Patches.of_stores(prepared.stores, prepared.scaling, prepared.spec.patch)
        self.prepared, self.steps, self.device = prepared, steps, device

    def __call__(self) -> None:
        torch.manual_seed(0)
        plain = PlainSteps(PlainNetwork(self.prepared.spec), self.device, beta=self.prepared.config.model.beta)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            plain.optimizer, lambda step: schedule_factor(step, steps=self.steps, warmup=self.steps // 20)
        )
        for sources, labels in self._loaded():
            plain.step(sources, labels)
            schedule.step()

    def _loaded(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        shuffled = RandomSampler(self.patches, num_samples=self.steps * PLAIN_BATCH)
        loader: DataLoader[tuple[list[Tensor], int]] = DataLoader(self.patches, batch_size=PLAIN_BATCH, sampler=shuffled)
        yield from loader


@dataclass(frozen=True)
class _RunElsewhere(Workspace):
    """A workspace's stores; the output of a run goes to another folder."""

    folder: str = ""

    @property
    def run_folder(self) -> str:
        return storage.join(self.folder, self.run)


class _QuietProgress:
    """Progress callback that ignores progress and prints warnings."""

    def seen(self, samples: int, waiting: float) -> None:
        """Ignore the call."""

    def loss(self, value: float) -> None:
        """Ignore the call."""

    def epoch(self, line: str) -> None:
        """Ignore the call."""

    def warn(self, line: str) -> None:
        """Print a warning."""
        warn(line)


class _LastEpoch(NamedTuple):
    """Metrics of a training's last epoch: samples per second, and the share of time spent waiting for data."""

    rate: float
    waiting: float


@dataclass
class _Ways:
    """Trainings with single-threaded CPU workers; each training is a run with its own folder."""

    prepared: Prepared
    folder: str
    runs: int = 0
    waits: dict[str, list[float]] = field(default_factory=dict)

    def rate(self, what: str, train: Callable[[], list[_LastEpoch]]) -> float:
        """Run the trainings of one way and return their total samples per second."""
        last_epochs = train()
        self.waits.setdefault(what, []).append(max(each.waiting for each in last_epochs))
        return sum(each.rate for each in last_epochs)

    def distributed(self, workers: int) -> list[_LastEpoch]:
        """Run one training on this many Ray Train workers."""
        from jobs.train.ray_trainer import train_on_ray

        settings = self._settings(workers=workers)
        train_on_ray(settings, WorkerResources(workers, cpus=1, gpus=0), _QuietProgress())
        return [_last_epoch(settings)]

    def independent(self, batch: int) -> list[_LastEpoch]:
        """Run two trainings on all samples in separate processes; both start their last epoch at the same time."""
        context = multiprocessing.get_context("spawn")
        both = [self._settings(workers=0, batch=batch) for _ in range(2)]
        with process_pool(2, initializer=_set_barrier, initargs=(context.Barrier(2),)) as pool:
            list(pool.map(_train_independently, both))
        return [_last_epoch(settings) for settings in both]

    def _settings(self, **changed: Any) -> Settings:
        self.runs += 1
        config = self.prepared.config
        fixed = {
            "threads": 1,
            "epochs": EPOCHS,
            "steps": None,
            "validate_steps": None,
            "validate_every": EPOCHS,
            "max_failures": 0,
            "max_workers": None,
        }
        untracked = {"mlflow": None, "seeds": None, "early_stopping_patience": None}
        train = config.train.model_copy(update=fixed | untracked | changed)
        workspace = _RunElsewhere(Workspace.of(config).url, f"run-{self.runs}", self.folder)
        return self.prepared.settings(workspace, train, threads=1)


def _workers(prepared: Prepared, folder: str, *, rounds: int) -> list[Row]:
    """Compare two workers with one, and with two independent trainings."""
    windows = prepared.sampler().windows()
    if windows < 2:
        raise InputError("all training samples are in one window, which two workers cannot share; give --no-workers.")
    batch = prepared.config.train.batch_size
    ways = _Ways(prepared, folder)
    trainings: dict[str, Callable[[], list[_LastEpoch]]] = {
        ONE: lambda: ways.distributed(1),
        TWO: lambda: ways.distributed(2),
        INDEPENDENT: lambda: ways.independent(batch),
        INDEPENDENT_HALF: lambda: ways.independent(batch // 2),
    }
    rates: dict[str, list[float]] = {what: [] for what in trainings}
    with _ray(), progress_bar("bench train, workers", rounds * len(trainings), unit="trainings") as advance:
        for _ in range(rounds):
            for what, training in trainings.items():
                rates[what].append(ways.rate(what, training))
                advance(1)
    found = {what: Timing(what, tuple(each)) for what, each in rates.items()}
    return [row(found[what], found[ONE], waits=ways.waits[what]) for what in trainings]


@contextmanager
def _ray() -> Iterator[None]:
    """Start Ray on this machine; shut it down at the end unless it was already running."""
    import ray

    from jobs.runtime import ray_cluster

    was_running = ray.is_initialized()
    ray_cluster.ensure(workers=2)
    try:
        yield
    finally:
        if not was_running:
            ray_cluster.close()


def _last_epoch(settings: Settings) -> _LastEpoch:
    line = json.loads(storage.read_bytes(settings.workspace.metrics).splitlines()[-1])
    return _LastEpoch(line["samples_per_second"], line["waiting"])


class _SynchronizedProgress(_QuietProgress):
    """Progress callback that waits for the other training before the last epoch, so neither has the machine to itself."""

    def __init__(self, barrier: Barrier) -> None:
        self.barrier, self.epochs = barrier, 0

    def epoch(self, line: str) -> None:
        """Wait for the other training before the last epoch."""
        del line
        self.epochs += 1
        if self.epochs == EPOCHS - 1:
            self.barrier.wait(BARRIER_TIMEOUT)


#: The barrier shared by the trainings in the pool's processes.
_barrier: list[Barrier] = []


def _set_barrier(barrier: Barrier) -> None:
    _barrier.append(barrier)


def _train_independently(settings: Settings) -> None:
    (barrier,) = _barrier
    try:
        run(settings, WorkerContext(0, 1, CPU), _SynchronizedProgress(barrier))
    except BaseException:
        barrier.abort()  # otherwise the other training would wait for `BARRIER_TIMEOUT` seconds
        raise


def table(result: Result) -> str:
    """Format the result as text; see `table.Row` for the columns."""
    text = [machine(), "", f"{result.name}; {result.batch} samples per step, {result.steps} steps in one process"]
    text.append(f"authors' loop: {PLAIN_BATCH} samples per step, DataLoader without workers on arrays in memory, float32")
    if result.epoch is not None:
        text.append(f"workers: one thread each, {result.precision}, second epoch of {result.epoch:,} samples")
    return "\n".join([*text, *lines(result.rows)])
