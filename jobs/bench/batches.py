"""mibf bench batches: patches a second on one core, and how long training waits for them, in one run."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jobs.bench.network import machine
from jobs.bench.random_scene import random_scene
from jobs.bench.timing import Case, Timing, measure
from jobs.config import Config
from jobs.progress import bar, say
from jobs.train import network_spec
from jobs.workspace import Workspace
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.optim import make_optimiser
from mibf.precision import best_device, place
from mibf.scaling import Scaling, scaling_from_json
from mibf.spec import NetworkSpec
from mibf.training import Batch, Learner, train_epoch
from pipeline import storage
from pipeline.batches import Sampler, scaled_window
from pipeline.grid import Window
from pipeline.labels import UNLABELLED
from pipeline.store import CHUNK, PatchStore

LOADER, BATCHES, THREADS, TURNED = "loader", "batches", "with threads", "balanced, turned"
TRAINING, WAITING = "training, with threads", "training, without"
#: Samples a batch, everywhere.
BATCH = 256
#: Batches that are timed of an epoch, and of the loader.
TIMED, LOADED = 1024, 64
#: Side in pixels of what of the store the loader has in memory.
SLAB = 8 * CHUNK
#: Windows that are shuffled together in the timed training: few, so that some hundred steps read as often as an epoch does.
TOGETHER = 2


@dataclass(frozen=True)
class Row:
    """One line of the table; rates in patches (samples) a second, the median and the range over rounds."""

    what: str
    rate: float
    slowest: float
    fastest: float
    baseline: str
    ratio: float  #: against the baseline of the same round
    waits: float | None = None  #: share of the time in which the network waited for its next batch


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
        names = "+".join(str(s.bands) for s in PatchStore(Workspace.of(config).store(config.scenes[0].name)).sources)
        return _measured(config, f"{names} bands of {config.name!r}", rounds=rounds, steps=steps)
    with tempfile.TemporaryDirectory(prefix="mibf-") as folder:
        config = random_scene(Path(folder), bands=bands, side=side)
        name = f"{'+'.join(map(str, bands))} bands, {side} x {side} pixels of random values"
        return _measured(config, name, rounds=rounds, steps=steps)


def _measured(config: Config, name: str, *, rounds: int, steps: int) -> Result:
    workspace = Workspace.of(config)
    stores = [PatchStore(workspace.store(scene.name)) for scene in config.scenes]
    try:
        scaling = scaling_from_json(storage.read_json(workspace.scaling))
    except FileNotFoundError as error:
        raise InputError(f"{workspace.scaling}: is not there; run `mibf prepare` first.") from error
    sampler = partial(Sampler, stores, scaling, config.model.patch, "train")
    patches = _Patches(stores, scaling, config.model.patch)
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
        spec = network_spec(config, stores[0])
        trainings = {
            what: _Training(spec, sampler(background=threads, group_windows=TOGETHER), steps)
            for what, threads in ((TRAINING, True), (WAITING, False))
        }
        cases = [Case(what, steps * BATCH, training) for what, training in trainings.items()]
        rates |= measure(cases, rounds=rounds, each=lambda: advance(1))
    rows = [_row(rates[what], rates[LOADER]) for what in (LOADER, BATCHES, THREADS, TURNED)]
    rows += [_row(rates[what], rates[WAITING], waits=training.waits) for what, training in trainings.items()]
    title = f"{name}, patches of {config.model.patch} x {config.model.patch}"
    return Result(title, sampler().samples(), held, rows)


def _case(what: str, sampler: Sampler) -> Case:
    """The end of an epoch, or all of one that is not longer."""
    steps = sampler.steps(BATCH)
    start = max(0, steps - TIMED)
    return Case(what, (steps - start) * BATCH, lambda: _taken(sampler.shuffled(batch=BATCH, seed=0, epoch=0, start=start)))


def _taken(batches: Iterable[object], most: int | None = None) -> None:
    for _ in islice(batches, most):
        pass


def _row(timing: Timing, baseline: Timing, *, waits: Sequence[float] = ()) -> Row:
    share = statistics.median(waits[1:]) if waits else None  # the first round warms up
    slowest, fastest = min(timing.rates), max(timing.rates)
    return Row(timing.name, timing.rate, slowest, fastest, baseline.name, timing.ratio(baseline), share)


class _Patches(Dataset[tuple[list[Tensor], int]]):
    """Patches cut one by one from arrays (row, column, band), as one writes a dataset for torch's loader."""

    def __init__(self, stores: Sequence[PatchStore], scaling: Scaling, patch: int) -> None:
        store, first = next((store, found[0][0]) for store in stores if (found := store.windows_with_samples("train")))
        slab = Window(first.y, first.x, min(SLAB, store.shape[0] - first.y), min(SLAB, store.shape[1] - first.x))
        windows = scaled_window(store, slab, scaling, halo=patch // 2)
        self.sources = [np.ascontiguousarray(values.transpose(1, 2, 0)) for values in windows]
        self.scales = [source.scale for source in store.sources]
        self.labels: NDArray[np.uint8] = store.samples(slab)["train"]
        self.places = np.argwhere(self.labels != UNLABELLED)
        self.patch = patch

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        y, x = (int(n) for n in self.places[index])
        p = self.patch
        cut = [v[y * s : (y + p) * s, x * s : (x + p) * s] for v, s in zip(self.sources, self.scales, strict=True)]
        return [torch.from_numpy(patch.transpose(2, 0, 1).copy()) for patch in cut], int(self.labels[y, x])


def _loaded(patches: _Patches) -> Iterable[object]:
    loader: DataLoader[tuple[list[Tensor], int]] = DataLoader(patches, batch_size=BATCH, shuffle=True)
    return loader


@dataclass
class _Training:
    """The first steps of an epoch, as `mibf train` makes them; `waits` has the share of the time waited in each call."""

    spec: NetworkSpec
    sampler: Sampler
    steps: int
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        torch.manual_seed(0)
        network = place(MIBFNet(self.spec), best_device())
        optimiser, schedule = make_optimiser(
            network.parameters(), rate=1e-3, weight_decay=5e-4, steps=self.steps, warmup=self.steps // 20
        )
        waited = 0.0

        def batches() -> Iterator[Batch]:
            nonlocal waited
            source = self._endless()
            for _ in range(self.steps):
                asked = time.perf_counter()
                batch = next(source)
                waited += time.perf_counter() - asked
                yield batch

        started = time.perf_counter()
        train_epoch(Learner(network, optimiser, schedule, beta=1e-4), batches())
        self.waits.append(waited / (time.perf_counter() - started))

    def _endless(self) -> Iterator[Batch]:
        """Epoch after epoch: a small scene's one may have fewer steps."""
        for epoch in range(self.steps):
            yield from self.sampler.shuffled(batch=BATCH, seed=0, epoch=epoch)


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
    """The result as text; columns are told in `Row`."""
    where = "on one core" if result.one_core else "with one thread of torch"
    lines = [machine(), "", f"{result.name}, {result.samples:,} training samples; rates of batches are {where}"]
    lines.append(f"{'':<24}{'per second':>11} {'range':>19}   waits  ratio")
    for row in result.rows:
        waits = "" if row.waits is None else f"{row.waits:.1%}"
        lines.append(
            f"{row.what:<24}{row.rate:>11,.0f} {row.slowest:>9,.0f}-{row.fastest:<9,.0f} {waits:>6}  "
            f"{row.ratio:.2f}x {row.baseline}"
        )
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Any]:
    """The result for machines."""
    return {"machine": machine(), "result": asdict(result)}
