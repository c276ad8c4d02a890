"""Throughput, memory and kernels of the network, of maps and of training. Nothing is asserted but that figures exist."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.bench.batches import Prepared
from jobs.bench.map import MapsElsewhere
from jobs.bench.network import multiply_adds
from jobs.config.config import Config
from jobs.map.attempt import make_job
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.map.stage import map_scenes
from jobs.train.learner import make_train_state
from jobs.train.settings import WorkerContext
from jobs.workflow.workspace import Workspace
from mibf.device import DTYPES, Precision, ieee_float32, to_device
from mibf.inference.cell import CELL
from mibf.inference.dense import Dense
from mibf.network.mibfnet import MIBFNet
from mibf.training.batch import Batch, WindowBatch
from mibf.training.epoch import train_epoch
from pipeline.io.lease import Lease
from pipeline.maps.predictor import TileInput, TilePredictor
from pipeline.maps.tile_mapper import TileLoader, TileMapper
from pipeline.maps.tile_threads import TileThreads
from pipeline.parallel.cpu_count import cpu_count
from tests.support.gpu import (
    BANDS,
    DEVICE,
    ON_GPU,
    PRECISIONS,
    Figures,
    batches_of,
    peak_memory,
    profiled,
    rate,
    spec_with,
    wait,
)
from tests.support.paths import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
SECONDS = 1.5 if ON_GPU else 0.2
BATCHES = (256, 1024, 4096, 16384) if ON_GPU else (64, 256)
#: Steps that are not timed: the first ones choose algorithms and allocate memory.
WARM_UP = 5
_PEAKS: dict[str, float] = {}


def peak_flops(precision: Precision) -> float:
    """Measured rate of a large matrix product in floating-point operations per second; float32 keeps all bits."""
    if precision not in _PEAKS:
        size = 8192 if ON_GPU else 256
        left, right = (torch.rand(size, size, device=DEVICE, dtype=DTYPES[precision]) for _ in range(2))
        with ieee_float32(DEVICE):
            _PEAKS[precision] = rate(lambda: torch.mm(left, right), 2.0 * size**3, seconds=SECONDS / 4)
    return _PEAKS[precision]


def flops(work: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products and convolutions of a call."""
    return 2 * multiply_adds(work)


def dense_of(bands: tuple[int, ...], precision: Precision, *, kernels: bool = True) -> Dense:
    torch.manual_seed(0)
    return Dense(to_device(MIBFNet(spec_with(bands, classes=11)).eval(), DEVICE), precision=precision, kernels=kernels)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bands", BANDS)
def test_dense_network(bands: tuple[int, ...], precision: Precision, figures: Figures) -> None:
    dense = dense_of(bands, precision)
    side = 8 * CELL if ON_GPU else CELL
    reach = side + 2 * dense.spec.halo
    tile = [torch.rand(b, reach, reach) for b in bands]
    with peak_memory() as memory:
        from_host = rate(lambda: dense(tile), side**2, seconds=SECONDS)
    placed = [values.to(DEVICE) for values in tile]
    resident = rate(lambda: dense(placed), side**2, seconds=SECONDS)
    counted = dense_of(bands, precision, kernels=False)  # torch does not count the operations of kernels
    per_pixel = flops(lambda: counted(placed)) / side**2
    figures.add(
        f"dense, {bands}, {precision}",
        pixels_per_second=from_host,
        resident_pixels_per_second=resident,
        rows=dense.rows,
        peak_bytes=memory.peak,
        flops_per_pixel=per_pixel,
        share_of_matrix_peak=per_pixel * resident / peak_flops(precision),
        matrix_peak=peak_flops(precision),
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_kernels_of_cells_computed_together(precision: Precision, figures: Figures) -> None:
    dense = dense_of(BANDS[0], precision)
    assert dense.cells == 16 or not ON_GPU
    side = 4 * CELL if ON_GPU else CELL
    tile = [torch.rand(b, side + 2 * dense.spec.halo, side + 2 * dense.spec.halo) for b in BANDS[0]]
    figures.add(f"kernels of {side} x {side} pixels, {BANDS[0]}, {precision}", **profiled(lambda: dense(tile)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bands", BANDS)
def test_map(
    bands: tuple[int, ...], precision: Precision, scenes: dict[tuple[int, ...], Config], figures: Figures, tmp_path: Path
) -> None:
    """From a warm store to published files, with the threads that a worker with these cores has."""
    config = scenes[bands]
    config = config.model_copy(update={"map": config.map.model_copy(update={"precision": precision})})
    workspace = Workspace.of(config)
    with peak_memory() as memory:
        for number in range(2):  # the first one warms the page cache up
            elsewhere = MapsElsewhere(workspace.url, workspace.run, str(tmp_path / str(number)))
            found = map_scenes(config, elsewhere, "", Lease()).figures
    total = found["pixels_mapped"] / (found["tiles_seconds"] + found["publish_seconds"])
    shares = {
        name: found[name] for name in ("pixels_per_second", "reading", "computing", "writing", "waiting", "publishing")
    }
    threads = TileThreads.of(DEVICE.type, cpu_count())
    figures.add(
        f"map, {bands}, {precision}",
        bound_by=bound_by(found, threads),
        readers=threads.readers,
        writers=threads.writers,
        published_pixels_per_second=total,
        **shares,
        peak_bytes=memory.peak,
    )


def bound_by(found: dict[str, Any], threads: TileThreads) -> str:
    """The step of a map whose threads were busy for most of the time, or "waiting" if none was for half of it."""
    busy = {
        "reading": found["reading"] / threads.readers,
        "computing": found["computing"],
        "writing": found["writing"] / threads.writers,
    }
    step = max(busy, key=lambda name: busy[name])
    return step if busy[step] > 0.5 else "waiting"


@pytest.mark.parametrize("bands", BANDS)
def test_loader(bands: tuple[int, ...], scenes: dict[tuple[int, ...], Config], figures: Figures, tmp_path: Path) -> None:
    """Reading alone by 1, 2, 4, ... threads: how far the threads of one process get in each other's way."""
    config = scenes[bands]
    workspace = Workspace.of(config)
    elsewhere = MapsElsewhere(workspace.url, workspace.run, str(tmp_path))
    spec = MapSpec.of(config, elsewhere)
    scene = SceneMap(spec, elsewhere, config.scenes[0])
    job = make_job(spec, {scene.name: scene})
    pixels = float(scene.store.shape[0] * scene.store.shape[1])
    found = {}
    for readers in (n for n in (1, 2, 4, 8, 16) if n <= cpu_count()):

        def read(readers: int = readers) -> None:
            loader = TileLoader(job, job.make_predictor(DEVICE))  # into pinned memory
            with ThreadPoolExecutor(readers) as pool:
                assert not any(pool.map(lambda tile: loader.load(tile).cause, scene.tiles))

        found[f"pixels_per_second_{readers}"] = rate(read, pixels, seconds=SECONDS / 3)
    figures.add(f"loader, {bands}", **found)


def test_place_hides_the_copy_to_the_device(scenes: dict[tuple[int, ...], Config], figures: Figures, tmp_path: Path) -> None:
    """Computing tiles from memory against tiles that a thread placed meanwhile, with all that is encoded on the device."""
    config = scenes[BANDS[0]]
    workspace = Workspace.of(config)
    elsewhere = MapsElsewhere(workspace.url, workspace.run, str(tmp_path))
    spec = MapSpec.of(config, elsewhere)
    scene = SceneMap(spec, elsewhere, config.scenes[0])
    predictor = make_job(spec, {scene.name: scene}).make_predictor(DEVICE)
    assert isinstance(predictor, TilePredictor)
    tile = predictor.read(scene.store, scene.tiles[0])
    pixels = 4.0 * tile.wanted.size

    def compute(place: Callable[[TileInput], TileInput]) -> None:
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(place, tile)
            for number in range(4):
                placed = ahead.result()
                if number < 3:
                    ahead = pool.submit(place, tile)
                predictor.compute(placed)

    from_memory, placed = (
        rate(partial(compute, place), pixels, seconds=SECONDS) for place in (lambda t: t, predictor.place)
    )
    expected, ours = predictor.compute(tile), predictor.compute(predictor.place(tile))
    assert all((ours[name] == values).all() for name, values in expected.items())
    figures.add(
        f"tiles of {BANDS[0]}, with codes", from_memory_pixels_per_second=from_memory, placed_pixels_per_second=placed
    )


def test_time_to_the_first_tile(small: Config, figures: Figures, tmp_path: Path) -> None:
    workspace = Workspace.of(small)
    elsewhere = MapsElsewhere(workspace.url, workspace.run, str(tmp_path))
    spec = MapSpec.of(small, elsewhere)
    scene = SceneMap(spec, elsewhere, small.scenes[0])
    scene.work(lost=lambda window: None)
    started = time.perf_counter()
    mapper = TileMapper(make_job(spec, {scene.name: scene}))
    loaded = time.perf_counter()
    outcome = next(iter(mapper.map(scene.tiles[:1])))
    assert not outcome.cause
    ended = time.perf_counter()
    path = Path(workspace.url).parent / "random.yaml"
    # From an empty process: imports, the start of CUDA, the model, one tile, publishing.
    overrides = ("map.workers=0", f"map.model={workspace.bundle}", "map.drift=ignore", "run=first")
    command = [sys.executable, "-m", "jobs.cli", "map", str(path), *(part for o in overrides for part in ("--set", o))]
    clock = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    figures.add(
        "first tile",
        model_seconds=loaded - started,
        tile_seconds=ended - loaded,
        command_seconds=time.perf_counter() - clock,
    )


class Timed:
    """Batches for some seconds after the warm-up, with the time that was spent waiting for them."""

    def __init__(self, batches: Iterable[Batch | WindowBatch], seconds: float) -> None:
        self.batches, self.seconds = batches, seconds
        self.samples, self.waited, self.elapsed = 0, 0.0, 0.0

    def __iter__(self) -> Iterator[Batch | WindowBatch]:
        source = iter(self.batches)
        started = 0.0
        for number in itertools.count():
            if number == WARM_UP:
                wait()
                started = time.perf_counter()
            asked = time.perf_counter()
            if number > WARM_UP and asked - started > self.seconds:
                break
            batch = next(source)
            if number >= WARM_UP:
                self.waited += time.perf_counter() - asked
                self.samples += len(batch.labels)
            yield batch
        wait()
        self.elapsed = time.perf_counter() - started


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", BATCHES)
def test_training(batch: int, precision: Precision, scenes: dict[tuple[int, ...], Config], figures: Figures) -> None:
    prepared = Prepared.of(scenes[BANDS[0]])
    train = prepared.config.train.model_copy(update={"precision": precision, "batch_size": batch})
    settings = prepared.settings(Workspace.of(prepared.config), train)
    sampler = prepared.sampler(augment=train.augment)
    drawn = partial(sampler.shuffled_for, DEVICE, batch=batch, seed=0)
    stored = Timed((b for epoch in itertools.count() for b in drawn(epoch=epoch)), SECONDS)
    first = next(drawn(epoch=0))
    fixed = Timed(itertools.repeat(first), SECONDS / 2)
    found: dict[str, Any] = {}
    with peak_memory() as memory:
        for name, batches in (("from_store", stored), ("same_batch", fixed)):
            learner = make_train_state(settings, WorkerContext(0, 1, DEVICE), seed=0, steps=10_000)
            train_epoch(learner, batches, samples=batch, seed=lambda step: step)
            found[f"{name}_samples_per_second"] = batches.samples / batches.elapsed
    figures.add(
        f"training, {BANDS[0]}, {precision}, batch {batch}",
        **found,
        waiting=stored.waited / stored.elapsed,
        peak_bytes=memory.peak,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_kernels_of_a_step(precision: Precision, scenes: dict[tuple[int, ...], Config], figures: Figures) -> None:
    prepared = Prepared.of(scenes[BANDS[0]])
    size = 4096 if ON_GPU else 64
    train = prepared.config.train.model_copy(update={"precision": precision, "batch_size": size})
    settings = prepared.settings(Workspace.of(prepared.config), train)
    learner, plain = (make_train_state(settings, WorkerContext(0, 1, DEVICE), seed=0, steps=10_000) for _ in range(2))
    (batch,) = batches_of(settings.spec, steps=1, size=size)
    plain.capture = None  # torch counts no operations of a graph
    operations = flops(lambda: train_epoch(plain, [batch]))
    found = profiled(lambda: train_epoch(learner, [batch]))
    figures.add(
        f"kernels of a step, {BANDS[0]}, {precision}, batch {size}",
        **found,
        flops_per_sample=operations / size,
        share_of_matrix_peak=operations / found["kernel_seconds"] / peak_flops(precision),
        matrix_peak=peak_flops(precision),
    )
    assert found["launches"] <= 120
