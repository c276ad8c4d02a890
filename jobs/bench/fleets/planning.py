"""mibf bench planning: time and memory of what is planned for all scenes at once, without reading a pixel.

The assignment of blocks to subsets and the writing of the catalog are the driver's work, the catalog, the order of an epoch
and the opening of stores that of every training worker. Counts of labels are drawn at random, and one store without pixels
stands for all of them. Each measurement runs in a process of its own; memory is
the growth of its peak over what the imported libraries take.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from jobs.bench.harness.processes import run_in_subprocess
from jobs.bench.harness.stub_workspace import SOURCES, stub_workspace
from jobs.bench.harness.working_set import peak
from jobs.bench.network import machine
from jobs.workflow.workspace import Workspace
from pipeline.codes import SUBSETS
from pipeline.io import zarr_store
from pipeline.sampling.epoch_plan import Frequencies, epoch_windows, expected_draws, rounded_draws
from pipeline.sampling.sample_table import SampleTable, StoreSamples
from pipeline.sampling.store_catalog import StoreList, sample_table, write_catalog
from pipeline.store.patch_store import PatchStore
from pipeline.store.shard_writer import write_samples
from pipeline.store.template import CHUNK
from pipeline.stratification.assign import assign_blocks
from pipeline.stratification.block_counts import BlockCounts

#: Side of the blocks in pixels, share of blocks with labels, number of classes, and of classes that a block or window has.
BLOCK, LABELLED, CLASSES, PRESENT = 96, 0.1, 10, 3
#: Number of distinct stores among those of an order, windows whose order is asked for, workers, and windows of the baseline.
DISTINCT, FIRST, WORKERS, PLAIN = 64, 100, 16, 3000
#: Stores that are opened without a catalog, and reads of windows from stores in random order with one.
OPENED = 200


@dataclass(frozen=True)
class Measured:
    """One step of planning."""

    what: str
    units: int
    unit: str
    seconds: float
    grown_bytes: int | None = None  #: peak growth of the process
    plain_seconds: float | None = None  #: of one unit after the other, extrapolated from some of them


@dataclass(frozen=True)
class PlanningBench:
    """All steps."""

    scenes: int
    side: int
    steps: list[Measured]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return [machine(), f"{self.scenes:,} scenes of {self.side:,} x {self.side:,} pixels", *map(_line, self.steps)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "scenes": self.scenes, "side": self.side, "steps": [asdict(s) for s in self.steps]}


def bench_planning(*, scenes: int, side: int) -> PlanningBench:
    """Measure every step for this many square scenes of a side in pixels."""
    steps = [run_in_subprocess(_assign, scenes, side, seed) for seed in (0, 1)]
    orders: tuple[Frequencies, ...] = ("natural", "balanced")
    steps += [run_in_subprocess(_order, scenes, side, frequencies) for frequencies in orders]
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        steps += [run_in_subprocess(work, folder, scenes, side) for work in (_write, _read, _open, _without_catalog)]
    return PlanningBench(scenes, side, steps)


def _line(step: Measured) -> str:
    memory = "" if step.grown_bytes is None else f", + {step.grown_bytes / 1e6:,.0f} MB"
    ratio = ""
    if step.plain_seconds is not None:
        plain = step.plain_seconds
        ratio = f"; {plain / step.seconds:,.0f} times as fast as one after the other ({plain:,.0f} s, extrapolated)"
    return f"{step.what}: {step.units:,} {step.unit} in {step.seconds:.1f} s{memory}{ratio}"


def _grown(before: int) -> int:
    return max(0, peak() - before)


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _assign(scenes: int, side: int, seed: int) -> Measured:
    before = psutil.Process().memory_info().rss
    blocks = scenes * (-(-side // BLOCK)) ** 2
    generator = np.random.default_rng(0)
    labelled = np.unique(generator.integers(0, blocks, int(LABELLED * blocks), np.uint32))
    counts = BlockCounts(
        blocks,
        CLASSES,
        labelled.repeat(PRESENT),
        ((generator.integers(0, CLASSES - PRESENT + 1, (len(labelled), 1)) + np.arange(PRESENT)).ravel().astype(np.uint8)),
        generator.integers(1, BLOCK**2, PRESENT * len(labelled), np.uint32),
    )
    assign = partial(assign_blocks, counts, {"train": 0.5, "validation": 0.2, "test": 0.3}, seed=seed)
    return Measured(f"assign blocks with seed {seed}", blocks, "blocks", _timed(assign), _grown(before))


def _samples(side: int, seed: int) -> StoreSamples:
    """A store with samples in every window: few, of a few classes."""
    generator, across = np.random.default_rng(seed), -(-side // CHUNK)
    counts = np.zeros((CLASSES, across, across), np.int64)
    for _ in range(2):
        position = generator.integers(0, CLASSES, (1, across, across))
        np.put_along_axis(counts, position, generator.integers(1, 40, (1, across, across)), axis=0)
    return StoreSamples.of_grid((side, side), CHUNK, counts)


def _order(scenes: int, side: int, frequencies: Frequencies) -> Measured:
    before = psutil.Process().memory_info().rss
    distinct = [_samples(side, seed).pack() for seed in range(min(DISTINCT, scenes))]
    # Copies, as those that are read from a catalog are all in memory.
    packed = [bytes(bytearray(distinct[number % len(distinct)])) for number in range(scenes)]
    started = time.monotonic()
    table = SampleTable(packed, classes=CLASSES)
    for part in islice(epoch_windows(table, frequencies=frequencies, seed=1, epoch=3, rank=5, workers=WORKERS), FIRST):
        assert part.total
    seconds, most = time.monotonic() - started, _grown(before)
    expected = expected_draws(table.counts, "balanced")
    rows = [table.samples(index) for index in range(min(PLAIN, len(table)))]
    plain = _timed(lambda: [rounded_draws(row, expected, seed=1, epoch=3, index=i, lap=0) for i, row in enumerate(rows)])
    extrapolated = plain / len(rows) * len(table)
    return Measured(
        f"order of an epoch, {frequencies}, one of {WORKERS} workers", len(table), "windows", seconds, most, extrapolated
    )


def _store(folder: str, side: int) -> str:
    """A store without pixels; made at the first call."""
    config_folder = Path(folder)
    url = Workspace(str(config_folder / "work"), "bench").store("bare")
    if not Path(url).exists():
        stub_workspace(config_folder, shape_yx=(side, side), tile=512, filled=False)
        across = -(-side // CHUNK)
        samples = np.random.default_rng(0).integers(0, 40, (len(SUBSETS), 2, across, across), np.int32)
        write_samples(zarr_store.ChecksumStore.at(url), samples)
    return url


def _urls(folder: str, scenes: int, side: int) -> dict[str, str]:
    return dict.fromkeys((f"scene {number}" for number in range(scenes)), _store(folder, side))


def _catalog(folder: str) -> str:
    return str(Path(folder) / "catalog.parquet")


def _write(folder: str, scenes: int, side: int) -> Measured:
    before = psutil.Process().memory_info().rss
    urls = _urls(folder, scenes, side)
    seconds = _timed(lambda: write_catalog(_catalog(folder), urls, fingerprint="", report=print))
    return Measured(
        "write the catalog", scenes, f"stores, {Path(_catalog(folder)).stat().st_size:,} bytes,", seconds, _grown(before)
    )


def _read(folder: str, scenes: int, side: int) -> Measured:
    before = psutil.Process().memory_info().rss
    urls = _urls(folder, scenes, side)

    def read() -> None:
        stores = StoreList.read(urls, catalog=_catalog(folder), fingerprint="", without=("test",))
        assert all(len(sample_table(stores, subset)) for subset in ("train", "validation"))

    return Measured("read the catalog", scenes, "stores, training and validation windows,", _timed(read), _grown(before))


def _open(folder: str, scenes: int, side: int) -> Measured:
    before = psutil.Process().memory_info().rss
    stores = StoreList.read(_urls(folder, scenes, side), catalog=_catalog(folder), fingerprint="")
    opened = np.random.default_rng(0).integers(0, scenes, OPENED).tolist()
    names = [f"sources/{name}" for name in SOURCES] + [f"valid/{name}" for name in SOURCES] + ["labels", "split"]
    seconds = _timed(lambda: [stores[position].array(name) for position in opened for name in names])
    return Measured("open stores with the catalog", OPENED, "stores and their arrays", seconds, _grown(before))


def _without_catalog(folder: str, scenes: int, side: int) -> Measured:
    before = psutil.Process().memory_info().rss
    url, number = _store(folder, side), min(OPENED, scenes)
    plain = _timed(lambda: [PatchStore(url).windows_with_samples(s) for _ in range(number) for s in ("train", "validation")])
    stores = StoreList([url] * number)
    seconds = _timed(lambda: [sample_table(stores, subset) for subset in ("train", "validation")])
    return Measured("open stores without a catalog, in threads", number, "stores", seconds, _grown(before), plain)
