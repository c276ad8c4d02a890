"""mibf bench batches: patches per second on one core, and the share of time that training waits for them, in one run."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from jobs.bench.harness.baseline import SLAB, Patches
from jobs.bench.harness.random_workspace import random_workspace
from jobs.bench.harness.table import Row, lines, row
from jobs.bench.harness.timing import Case, measure
from jobs.bench.network import machine
from jobs.config.config import Config
from jobs.config.train import TrainSection
from jobs.runtime.progress import info, progress_bar
from jobs.train.learner import make_train_state
from jobs.train.settings import Settings, WorkerContext, make_settings, network_spec
from jobs.workflow.workspace import Workspace
from mibf.device import best_device
from mibf.errors import InputError
from mibf.network.spec import NetworkSpec
from mibf.normalization import Scaling, scaling_from_json
from mibf.training.batch import Batch
from mibf.training.epoch import Step, train_epoch
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore

LOADER, BATCHES, THREADS, TURNED = "loader", "batches", "with threads", "balanced, augmented"
TRAINING, WAITING = "training, with threads", "training, without threads"
#: Samples per batch in every case.
BATCH = 256
#: Number of batches timed per epoch, and with the loader.
TIMED, LOADED = 1024, 64
#: Windows shuffled together in the timed training: few, so that a few hundred steps read as often as a full epoch does.
GROUP_WINDOWS = 2


@dataclass(frozen=True)
class Result:
    """Result of the benchmark for one prepared workspace."""

    name: str
    samples: int  #: number of training samples in all stores
    one_core: bool  #: True if the system can pin a process to one core; otherwise torch used one thread
    rows: list[Row]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return table(self).split("\n")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "result": asdict(self)}


def bench_batches(config: Config | None, *, bands: Sequence[int], rounds: int, steps: int, side: int = SLAB) -> Result:
    """Benchmark the batches of a prepared configuration or, without one, of a random scene of side x side pixels.

    Rates are for one core, reading stores in the page cache; training runs `steps` steps on all cores.

    Raises:
        InputError: the configuration is not prepared.
    """
    info("keep the machine idle during the benchmark: other load affects the measurements")
    if config is not None:
        return _measured(config, repr(config.name), rounds=rounds, steps=steps)
    with tempfile.TemporaryDirectory(prefix="mibf-") as folder:
        config = random_workspace(Path(folder), bands=bands, side=side)
        return _measured(config, f"{side} x {side} pixels of random values", rounds=rounds, steps=steps)


@dataclass(frozen=True)
class Prepared:
    """Stores of a configuration, with the spec and normalization of its network."""

    config: Config
    stores: list[PatchStore]
    spec: NetworkSpec
    scaling: Scaling

    @classmethod
    def of(cls, config: Config) -> Prepared:
        """Open the stores of a configuration's workspace.

        Raises:
            InputError: the configuration is not prepared.
        """
        workspace = Workspace.of(config)
        try:
            scaling = scaling_from_json(storage.read_json(workspace.scaling))
        except FileNotFoundError as error:
            raise InputError(f"{workspace.scaling}: not found; run `mibf prepare` first.") from error
        stores = [PatchStore(workspace.store(scene.name)) for scene in config.scenes]
        spec = network_spec(config, stores[0])
        return cls(config, stores, spec, {source.name: scaling[source.name] for source in spec.sources})

    @property
    def title(self) -> str:
        """Band counts and patch size, for the table."""
        bands = "+".join(str(source.bands) for source in self.spec.sources)
        return f"{bands} bands, patches of {self.spec.patch} x {self.spec.patch}"

    def sampler(self, **how: Any) -> Sampler:
        """Return a sampler of the training samples."""
        return Sampler(self.stores, self.scaling, self.spec.patch, "train", **how)

    def settings(self, workspace: Workspace, train: TrainSection, *, threads: int = 0) -> Settings:
        """Return the training settings for a run in this workspace."""
        config = self.config.model_copy(update={"train": train})
        return make_settings(
            config, workspace, self.spec, self.sampler(), threads=threads, identity={}, lease=Lease(), fingerprint=""
        )


def _measured(config: Config, name: str, *, rounds: int, steps: int) -> Result:
    prepared = Prepared.of(config)
    sampler, patches = prepared.sampler, Patches.of_stores(prepared.stores, prepared.scaling, config.model.patch)
    with progress_bar("bench batches", 2 * (rounds + 1), unit="rounds") as advance:
        with on_cores(1) as pinned:
            rates = measure(
                [
                    Case(LOADER, min(len(patches), LOADED * BATCH), lambda: _taken(_loaded(patches), LOADED)),
                    _case(BATCHES, sampler(background=False)),
                    _case(THREADS, sampler()),
                    _case(TURNED, sampler(frequencies="balanced", augment=True)),
                ],
                rounds=rounds,
                each=lambda: advance(1),
            )
        settings = prepared.settings(Workspace.of(config), TrainSection())
        trainings = {
            what: Training(settings, sampler(background=threads, group_windows=GROUP_WINDOWS), steps)
            for what, threads in ((TRAINING, True), (WAITING, False))
        }
        cases = [Case(what, steps * BATCH, training) for what, training in trainings.items()]
        rates |= measure(cases, rounds=rounds, each=lambda: advance(1))
    rows = [row(rates[what], rates[LOADER]) for what in (LOADER, BATCHES, THREADS, TURNED)]
    rows += [row(rates[what], rates[WAITING], waits=training.waits[1:]) for what, training in trainings.items()]
    return Result(f"{name}, {prepared.title}", sampler().samples(), pinned, rows)


def _case(what: str, sampler: Sampler) -> Case:
    """Return a case for the last `TIMED` batches of an epoch, or the complete epoch if it is shorter."""
    steps = sampler.steps(BATCH)
    start = max(0, steps - TIMED)
    return Case(what, (steps - start) * BATCH, lambda: _taken(sampler.shuffled(batch=BATCH, seed=0, epoch=0, start=start)))


def _taken(batches: Iterable[object], most: int | None = None) -> None:
    for _ in islice(batches, most):
        pass


def _loaded(patches: Patches) -> Iterable[object]:
    loader: DataLoader[tuple[list[Tensor], int]] = DataLoader(patches, batch_size=BATCH, shuffle=True)
    return loader


@dataclass
class Training:
    """The first steps of an epoch, run as `mibf train` runs them in its own process.

    `waits` holds the share of time spent waiting for data, one value per call.
    """

    settings: Settings
    sampler: Sampler
    steps: int
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        """Run the steps, starting from the initial weights."""
        learner = make_train_state(
            self.settings, WorkerContext(0, 1, best_device()), seed=0, steps=self.steps * self.settings.train.epochs
        )
        batch, waited = self.settings.train.batch_size, 0.0

        def add_wait(step: Step) -> None:
            nonlocal waited
            waited += step.waited

        started = time.perf_counter()
        train_epoch(
            learner, islice(self._endless(batch), self.steps), samples=batch, seed=lambda step: step, after_step=add_wait
        )
        self.waits.append(waited / (time.perf_counter() - started))

    def _endless(self, batch: int) -> Iterator[Batch]:
        """Iterate over successive epochs: an epoch of a small scene may have fewer steps than needed."""
        for epoch in range(self.steps):
            yield from self.sampler.shuffled(batch=batch, seed=0, epoch=epoch)


@contextmanager
def on_cores(count: int) -> Iterator[bool]:
    """Pin all threads of the process to so many cores inside the block; yields whether the system supports it.

    Torch's operations use one thread: what uses the cores are the process's own threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if sys.platform != "linux":
            yield False
            return
        before = os.sched_getaffinity(0)
        _hold(set(sorted(before)[-count:]))
        try:
            yield True
        finally:
            _hold(before)
    finally:
        torch.set_num_threads(threads)


def _hold(cores: set[int]) -> None:
    """Restrict all existing threads, and those that they start later, to these cores."""
    if sys.platform == "linux":
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # the thread has ended
                os.sched_setaffinity(int(thread.name), cores)


def table(result: Result) -> str:
    """Format the result as text; see `table.Row` for the columns."""
    where = "on one core" if result.one_core else "with one torch thread"
    head = f"{result.name}, {result.samples:,} training samples; batch rates are {where}"
    return "\n".join([machine(), "", head, *lines(result.rows)])
