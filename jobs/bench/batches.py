"""mibf bench batches: patches a second on one core, and how long training waits for them, in one run."""

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

from jobs.bench.network import machine
from jobs.bench.plain import SLAB, Patches
from jobs.bench.random_scene import random_scene
from jobs.bench.rows import Row, lines, row
from jobs.bench.timing import Case, measure
from jobs.config import Config, TrainSection
from jobs.loop import Place, Settings, learner_of
from jobs.progress import bar, say
from jobs.train import network_spec, settings_of
from jobs.workspace import Workspace
from mibf.errors import InputError
from mibf.precision import best_device
from mibf.scaling import Scaling, scaling_from_json
from mibf.spec import NetworkSpec
from mibf.training import Batch, Step, train_epoch
from pipeline import storage
from pipeline.batches import Sampler
from pipeline.store import PatchStore

LOADER, BATCHES, THREADS, TURNED = "loader", "batches", "with threads", "balanced, turned"
TRAINING, WAITING = "training, with threads", "training, without"
#: Samples a batch, everywhere.
BATCH = 256
#: Batches that are timed of an epoch, and of the loader.
TIMED, LOADED = 1024, 64
#: Windows that are shuffled together in the timed training: few, so that some hundred steps read as often as an epoch does.
TOGETHER = 2


@dataclass(frozen=True)
class Result:
    """What the benchmark found of one prepared workspace."""

    name: str
    samples: int  #: of training, in all stores
    one_core: bool  #: whether the system lets a process be held to one; otherwise one thread of torch
    rows: list[Row]


def bench_batches(config: Config | None, *, bands: Sequence[int], rounds: int, steps: int, side: int = SLAB) -> Result:
    """Measure the batches of a prepared configuration; without one, of a random scene of side x side pixels.

    Rates are those of one core, from stores that the system has in memory; the training takes all cores, `steps` steps.

    Raises:
        InputError: the configuration was not prepared.
    """
    say("leave the machine alone meanwhile: its other work is measured too")
    if config is not None:
        return _measured(config, repr(config.name), rounds=rounds, steps=steps)
    with tempfile.TemporaryDirectory(prefix="mibf-") as folder:
        config = random_scene(Path(folder), bands=bands, side=side)
        return _measured(config, f"{side} x {side} pixels of random values", rounds=rounds, steps=steps)


@dataclass(frozen=True)
class Prepared:
    """The stores of a configuration, and what the network takes of them."""

    config: Config
    stores: list[PatchStore]
    spec: NetworkSpec
    scaling: Scaling

    @classmethod
    def of(cls, config: Config) -> Prepared:
        """Those of its workspace.

        Raises:
            InputError: the configuration was not prepared.
        """
        workspace = Workspace.of(config)
        try:
            scaling = scaling_from_json(storage.read_json(workspace.scaling))
        except FileNotFoundError as error:
            raise InputError(f"{workspace.scaling}: is not there; run `mibf prepare` first.") from error
        stores = [PatchStore(workspace.store(scene.name)) for scene in config.scenes]
        spec = network_spec(config, stores[0])
        return cls(config, stores, spec, {source.name: scaling[source.name] for source in spec.sources})

    @property
    def title(self) -> str:
        """Bands and patch, for the table."""
        bands = "+".join(str(source.bands) for source in self.spec.sources)
        return f"{bands} bands, patches of {self.spec.patch} x {self.spec.patch}"

    def sampler(self, **how: Any) -> Sampler:
        """Of the training samples."""
        return Sampler(self.stores, self.scaling, self.spec.patch, "train", **how)

    def settings(self, workspace: Workspace, train: TrainSection, *, threads: int = 0) -> Settings:
        """What training is told, its run in this workspace."""
        config = self.config.model_copy(update={"train": train})
        return settings_of(config, workspace, self.spec, self.sampler(), threads=threads, identity={}, fingerprint="")


def _measured(config: Config, name: str, *, rounds: int, steps: int) -> Result:
    prepared = Prepared.of(config)
    sampler, patches = prepared.sampler, Patches.of_stores(prepared.stores, prepared.scaling, config.model.patch)
    with bar("bench batches", 2 * (rounds + 1), unit="rounds") as advance:
        with one_core() as held:
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
            what: Training(settings, sampler(background=threads, group_windows=TOGETHER), steps)
            for what, threads in ((TRAINING, True), (WAITING, False))
        }
        cases = [Case(what, steps * BATCH, training) for what, training in trainings.items()]
        rates |= measure(cases, rounds=rounds, each=lambda: advance(1))
    rows = [row(rates[what], rates[LOADER]) for what in (LOADER, BATCHES, THREADS, TURNED)]
    rows += [row(rates[what], rates[WAITING], waits=training.waits[1:]) for what, training in trainings.items()]
    return Result(f"{name}, {prepared.title}", sampler().samples(), held, rows)


def _case(what: str, sampler: Sampler) -> Case:
    """The end of an epoch, or all of one that is not longer."""
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
    """The first steps of an epoch, as `mibf train` makes them in its own process.

    `waits` has the share of the time waited in each call.
    """

    settings: Settings
    sampler: Sampler
    steps: int
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        """Make them, from the first weights on."""
        learner = learner_of(self.settings, Place(0, 1, best_device()), seed=0, steps=self.steps)
        batch, waited = self.settings.train.batch, 0.0

        def note(step: Step) -> None:
            nonlocal waited
            waited += step.waited

        started = time.perf_counter()
        train_epoch(
            learner, islice(self._endless(batch), self.steps), samples=batch, seed=lambda step: step, after_step=note
        )
        self.waits.append(waited / (time.perf_counter() - started))

    def _endless(self, batch: int) -> Iterator[Batch]:
        """Epoch after epoch: a small scene's one may have fewer steps."""
        for epoch in range(self.steps):
            yield from self.sampler.shuffled(batch=batch, seed=0, epoch=epoch)


@contextmanager
def one_core() -> Iterator[bool]:
    """Hold the process, all threads of it, to one core while the block runs; whether the system can."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if sys.platform != "linux":
            yield False
            return
        before = os.sched_getaffinity(0)
        _hold({max(before)})
        try:
            yield True
        finally:
            _hold(before)
    finally:
        torch.set_num_threads(threads)


def _hold(cores: set[int]) -> None:
    """Let the threads that there are, and those that they start, run on these cores alone."""
    if sys.platform == "linux":
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), cores)


def table(result: Result) -> str:
    """The result as text; columns are told in `rows.Row`."""
    where = "on one core" if result.one_core else "with one thread of torch"
    head = f"{result.name}, {result.samples:,} training samples; rates of batches are {where}"
    return "\n".join([machine(), "", head, *lines(result.rows)])


def as_json(result: Result) -> dict[str, Any]:
    """The result for machines."""
    return {"machine": machine(), "result": asdict(result)}
