"""mibf bench train: training beside the authors' own loop, and on two workers beside one, in one run.

The authors' loop (`jobs.bench.plain`) has torch's `DataLoader` work in the loop's own process: a loader with workers would
take the cores that the network computes on. It starts with its patches' arrays scaled in memory; ours reads its stores.

Workers are Ray Train's with one thread each, two of them sharing the samples of a step. Two trainings of one worker that
know nothing of each other, at the same time on the same machine, tell what of a loss is the machine's: its memory, caches
and clock, which two must share. The same with half the samples a step tells what is the smaller batch's; the rest is
what it costs to train together. Their rates are those of the second epoch, the first one warms up.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from jobs.bench.batches import TOGETHER, Prepared, Training
from jobs.bench.network import machine
from jobs.bench.plain import PLAIN_BATCH, SLAB, Patches, PlainNetwork, PlainSteps
from jobs.bench.random_scene import random_scene
from jobs.bench.rows import Row, lines, row
from jobs.bench.timing import Case, Timing, measure
from jobs.config import Config
from jobs.loop import Place, Settings, run, steps_of
from jobs.progress import bar, say, warn
from jobs.workspace import Workspace
from mibf.errors import InputError
from mibf.optim import rate_share
from mibf.precision import best_device, check_precision
from pipeline import storage

AUTHORS, FLOAT32, BF16 = "authors' loop", "mibf, float32", "mibf, bf16"
SMALL = f"mibf, float32, {PLAIN_BATCH} a step"
ONE, TWO, APART, APART_HALF = "one worker", "two workers", "two apart", "two apart, half the batch"
#: Side in pixels of the random scene that workers train on, whole epochs of it.
WORKERS_SIDE = 256
EPOCHS = 2
#: Seconds after which a training that waits for the other one to begin its last epoch gives up.
PATIENCE = 3600
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Result:
    """What the benchmark found; rates in samples a second."""

    name: str
    batch: int  #: samples a step, where a row does not say otherwise
    steps: int  #: that are timed in one process
    epoch: int | None  #: samples of the workers' epoch
    precision: str  #: of the workers
    rows: list[Row]


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
    """Measure the training of a prepared configuration, with its settings; without one, on random scenes with the defaults.

    In one process `steps` steps are timed; workers, where wanted, train two epochs, which `sampling.rate` makes
    shorter. Nothing is written but temporary files.

    Raises:
        InputError: the configuration was not prepared, or workers would be on other machines.
    """
    say("leave the machine alone meanwhile: its other work is measured too")
    if workers and os.environ.get("RAY_ADDRESS", "local") != "local":
        raise InputError("RAY_ADDRESS names a cluster, and this measures one machine; unset it, or give --no-workers.")
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        if config is None:
            prepared = Prepared.of(random_scene(_made(folder, "large"), bands=bands, side=side))
            shared = Prepared.of(random_scene(_made(folder, "small"), bands=bands, side=workers_side)) if workers else None
            name = f"{side} x {side} pixels of random values, {prepared.title}"
        else:
            prepared = Prepared.of(config)
            shared = prepared if workers else None
            name = f"{config.name!r}, {prepared.title}"
        rows = _one_process(prepared, rounds=rounds, steps=steps)
        if shared is not None:
            rows += _workers(shared, folder, rounds=rounds)
        train = prepared.config.train
        rate = prepared.config.sampling.rate
        epoch = None if shared is None else steps_of(train, rate, shared.sampler().samples()) * train.batch
        return Result(name, train.batch, steps, epoch, train.precision, rows)


def _made(folder: str, name: str) -> Path:
    made = Path(folder, name)
    made.mkdir()
    return made


def _one_process(prepared: Prepared, *, rounds: int, steps: int) -> list[Row]:
    """The authors' loop and ours, on the device that training would take."""
    wanted, device = prepared.config.train, best_device()
    check_precision(device, "bf16")
    frequencies = prepared.config.sampling.frequencies
    sampler = prepared.sampler(
        frequencies=frequencies,
        augment=wanted.augment,
        source_dropout=wanted.source_dropout,
        group_windows=TOGETHER,
    )
    workspace = Workspace.of(prepared.config)  # nothing is written there
    ways: dict[str, dict[str, Any]] = {
        FLOAT32: {"precision": "float32"},
        BF16: {"precision": "bf16"},
        SMALL: {"precision": "float32", "batch": PLAIN_BATCH},
    }
    samples = steps * wanted.batch
    ours = {}
    for what, changed in ways.items():
        train = wanted.model_copy(update=changed)
        ours[what] = Training(prepared.settings(workspace, train), sampler, samples // train.batch)
    cases = [Case(AUTHORS, samples // PLAIN_BATCH * PLAIN_BATCH, _AuthorsLoop(prepared, samples // PLAIN_BATCH, device))]
    cases += [Case(what, training.steps * training.settings.train.batch, training) for what, training in ours.items()]
    with bar("bench train, one process", rounds + 1, unit="rounds") as advance:
        rates = measure(cases, rounds=rounds, each=lambda: advance(1))
    found = [row(rates[AUTHORS], rates[AUTHORS])]
    return found + [row(rates[what], rates[AUTHORS], waits=training.waits[1:]) for what, training in ours.items()]


class _AuthorsLoop:
    """Some steps of an epoch as the released code makes them: one process, float32, `PLAIN_BATCH` samples a step."""

    def __init__(self, prepared: Prepared, steps: int, device: torch.device) -> None:
        self.patches = Patches.of_stores(prepared.stores, prepared.scaling, prepared.spec.patch)
        self.prepared, self.steps, self.device = prepared, steps, device

    def __call__(self) -> None:
        torch.manual_seed(0)
        plain = PlainSteps(PlainNetwork(self.prepared.spec), self.device, beta=self.prepared.config.model.beta)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            plain.optimiser, lambda step: rate_share(step, steps=self.steps, warmup=self.steps // 20)
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
    """The stores of a workspace; what a run writes goes to another folder."""

    folder: str = ""

    @property
    def run_folder(self) -> str:
        return storage.join(self.folder, self.run)


class _Listener:
    """Tells nobody how far training is, but what goes wrong."""

    def seen(self, samples: int, waiting: float) -> None:
        """Nothing."""

    def loss(self, value: float) -> None:
        """Nothing."""

    def epoch(self, line: str) -> None:
        """Nothing."""

    def warn(self, line: str) -> None:
        """To the person."""
        warn(line)


class _Seen(NamedTuple):
    """What a training says of its last epoch: samples a second, and the share of the time that it waited for data."""

    rate: float
    waiting: float


@dataclass
class _Ways:
    """The trainings of workers with one thread each, on CPUs; each is a run in a folder of its own."""

    prepared: Prepared
    folder: str
    runs: int = 0
    waits: dict[str, list[float]] = field(default_factory=dict)

    def rate(self, what: str, train: Callable[[], list[_Seen]]) -> float:
        """Samples a second of all trainings of a way together."""
        seen = train()
        self.waits.setdefault(what, []).append(max(each.waiting for each in seen))
        return sum(each.rate for each in seen)

    def together(self, workers: int) -> list[_Seen]:
        """One training on some of Ray Train's workers."""
        from jobs.cluster import Share
        from jobs.gang import train_on_ray

        settings = self._settings(workers=workers)
        train_on_ray(settings, Share(workers, cpus=1, gpus=0), _Listener())
        return [_last_epoch(settings)]

    def apart(self, batch: int) -> list[_Seen]:
        """Two trainings at once, each in a process of its own and of all samples; they begin their last epoch together."""
        context = multiprocessing.get_context("spawn")
        both = [self._settings(workers=0, batch=batch) for _ in range(2)]
        with ProcessPoolExecutor(2, context, initializer=_meet_at, initargs=(context.Barrier(2),)) as pool:
            list(pool.map(_train_apart, both))
        return [_last_epoch(settings) for settings in both]

    def _settings(self, **changed: Any) -> Settings:
        self.runs += 1
        config = self.prepared.config
        fixed = {"threads": 1, "epochs": EPOCHS, "validate_every": EPOCHS, "failures": 0, "max_workers": None}
        untracked = {"mlflow": None, "seeds": None, "patience": None}
        train = config.train.model_copy(update=fixed | untracked | changed)
        workspace = _RunElsewhere(Workspace.of(config).url, f"run-{self.runs}", self.folder)
        return self.prepared.settings(workspace, train, threads=1)


def _workers(prepared: Prepared, folder: str, *, rounds: int) -> list[Row]:
    """Two workers beside one, and beside two that do not train together."""
    windows = prepared.sampler().windows()
    if windows < 2:
        raise InputError("the training samples lie in one window, which two workers cannot share out; give --no-workers.")
    batch = prepared.config.train.batch
    ways = _Ways(prepared, folder)
    trainings: dict[str, Callable[[], list[_Seen]]] = {
        ONE: lambda: ways.together(1),
        TWO: lambda: ways.together(2),
        APART: lambda: ways.apart(batch),
        APART_HALF: lambda: ways.apart(batch // 2),
    }
    rates: dict[str, list[float]] = {what: [] for what in trainings}
    with _ray(), bar("bench train, workers", rounds * len(trainings), unit="trainings") as advance:
        for _ in range(rounds):
            for what, training in trainings.items():
                rates[what].append(ways.rate(what, training))
                advance(1)
    found = {what: Timing(what, tuple(each)) for what, each in rates.items()}
    return [row(found[what], found[ONE], waits=ways.waits[what]) for what in trainings]


@contextmanager
def _ray() -> Iterator[None]:
    """Ray on this machine; closed in the end, unless it was there before."""
    import ray

    from jobs import cluster

    was_there = ray.is_initialized()
    cluster.ensure(workers=2)
    try:
        yield
    finally:
        if not was_there:
            cluster.close()


def _last_epoch(settings: Settings) -> _Seen:
    line = json.loads(storage.read_bytes(settings.workspace.metrics).splitlines()[-1])
    return _Seen(line["samples_per_second"], line["waiting"])


class _Meeting(_Listener):
    """Of a training that waits for another one before its last epoch: one that runs ahead would have the machine alone."""

    def __init__(self, barrier: Barrier) -> None:
        self.barrier, self.epochs = barrier, 0

    def epoch(self, line: str) -> None:
        """Wait once."""
        del line
        self.epochs += 1
        if self.epochs == EPOCHS - 1:
            self.barrier.wait(PATIENCE)


#: Where the trainings of a pool's processes meet.
_meeting: list[Barrier] = []


def _meet_at(barrier: Barrier) -> None:
    _meeting.append(barrier)


def _train_apart(settings: Settings) -> None:
    (barrier,) = _meeting
    try:
        run(settings, Place(0, 1, CPU), _Meeting(barrier))
    except BaseException:
        barrier.abort()  # the other one would wait for ever
        raise


def table(result: Result) -> str:
    """The result as text; columns are told in `rows.Row`."""
    text = [machine(), "", f"{result.name}; {result.batch} samples a step, {result.steps} steps in one process"]
    text.append(f"authors' loop: {PLAIN_BATCH} samples a step, a loader without workers over arrays in memory, float32")
    if result.epoch is not None:
        text.append(f"workers: one thread each, {result.precision}, the second epoch of {result.epoch:,} samples")
    return "\n".join([*text, *lines(result.rows)])


def as_json(result: Result) -> dict[str, Any]:
    """The result for machines."""
    return {"machine": machine(), "result": asdict(result)}
