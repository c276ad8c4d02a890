"""mibf bench map: the map stage compared with the bare network on the same pixels in memory, in one run.

The bare network (`mibf.inference.dense.Dense`) gets the scene's normalized pixels in memory, up to `DENSE_BYTES`, in one
call. The stage reads its store, writes the intermediate map, checks that it covers the scene, publishes it and writes
its STAC item. Its rate covers all of that from the start of the first tile, without starting Ray and loading the model.
With several tile sides, one run shows the stage with few and many tiles, and with one and several tiles a task.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from jobs.bench.harness.random_workspace import random_model, random_workspace
from jobs.bench.harness.timing import Timing
from jobs.bench.network import machine
from jobs.config.config import Config
from jobs.map.spec import MapSpec
from jobs.map.stage import map_scenes
from jobs.runtime.progress import info
from jobs.workflow.workspace import Workspace
from mibf.device import DTYPES, best_device, check_precision, to_device
from mibf.errors import InputError
from mibf.inference.cell import CELL
from mibf.inference.dense import Dense
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.maps.predictor import check_sources, mappable_pixels
from pipeline.maps.products import products_of_network
from pipeline.store.patch_store import PatchStore, scaled_window

BARE = "bare network"
#: Ways to map, with the `map.workers` of each: the workers share all cores.
WAYS = {"in this process": 0, "one worker": 1, "two workers": 2}
#: Maximum bytes of normalized pixels given to the bare network.
DENSE_BYTES = 2 << 30
#: Shares of the stage's time: publishing relative to the total, the others relative to the workers' time before it.
SHARES = ("publishing", "reading", "computing", "writing", "waiting")


@dataclass(frozen=True)
class Row:
    """One row of the table; rates in mapped pixels per second, median and range over rounds."""

    what: str
    rate: float
    slowest: float
    fastest: float
    ratio: float  #: to the bare network, within each round
    shares: dict[str, float] = field(default_factory=dict)  #: medians of `SHARES`; empty for the bare network
    tile: int = 0  #: side of the tiles; 0 for the bare network
    tiles_a_task: int = 0  #: of workers


@dataclass(frozen=True)
class Result:
    """Result of the benchmark for one scene."""

    name: str
    precision: str
    pixels: int  #: pixels mapped by the stage
    held: int  #: pixels given to the bare network
    rows: list[Row]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return table(self).split("\n")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "result": asdict(self)}


@dataclass(frozen=True)
class MapsElsewhere(Workspace):
    """A workspace's stores and model; the output of `map` goes to another folder."""

    folder: str = ""

    @property
    def run_folder(self) -> str:
        """Folder of the run's records."""
        return storage.join(self.folder, "runs")

    def map_folder(self, scene: str) -> str:
        """Return the folder of a scene's products."""
        return storage.join(self.folder, "maps", scene)


def bench_map(
    config: Config | None,
    *,
    bands: Sequence[int],
    side: int,
    rounds: int,
    precision: str | None = None,
    tiles: Sequence[int] = (),
) -> Result:
    """Benchmark mapping a configuration's first scene with its model or, without one, a random scene with a random network.

    Only temporary files are written.

    Args:
        config: prepared and trained configuration.
        bands: band counts of the random scene's sources.
        side: side of the random scene in pixels, a multiple of 64.
        rounds: number of timings of each way; every other round runs in reverse order.
        precision: network precision; overrides the configuration's.
        tiles: sides of the tiles to map with, multiples of 64; by default the configuration's.

    Raises:
        InputError: store or model not found, an argument is invalid, or `RAY_ADDRESS` names a cluster.
    """
    info("keep the machine idle during the benchmark: other load affects the measurements")
    check_one_machine()
    check_side(side)
    for tile in tiles:
        check_side(tile, option="--tile")
    if precision not in (None, *DTYPES):
        raise InputError(f"--precision {precision}: must be one of {', '.join(DTYPES)}.")
    if precision is not None:
        check_precision(best_device(), precision, key="--precision")
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        if config is None:
            config = random_workspace(Path(folder), bands=bands, side=side)
            random_model(config)
            name = f"{side} x {side} pixels of random values"
        else:
            name = repr(config.name)
        changed = {} if precision is None else {"precision": precision}
        config = config.model_copy(
            update={"scenes": config.scenes[:1], "map": config.map.model_copy(update={"drift": "ignore"} | changed)}
        )
        return _measured(config, name, folder, rounds=rounds, tiles=tiles or [config.map.tile_size])


def check_one_machine() -> None:
    """Check that workers would run on this machine.

    Raises:
        InputError: `RAY_ADDRESS` names a cluster.
    """
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        raise InputError("RAY_ADDRESS names a cluster; this benchmark measures one machine: unset it.")


def check_side(side: int, *, option: str = "--size") -> None:
    """Check the side of a generated scene or of a tile, in pixels.

    Raises:
        InputError: it is not a positive multiple of the cell side.
    """
    if side < CELL or side % CELL:
        what = "scene's" if option == "--size" else "tiles'"
        raise InputError(f"{option} {side}: give the {what} side in pixels, a multiple of {CELL}.")


def _measured(config: Config, name: str, folder: str, *, rounds: int, tiles: Sequence[int]) -> Result:
    bare = _Bare(config)
    stages = [_Stage(config, folder, what, tile) for tile in tiles for what in WAYS]
    ways: list[_Bare | _Stage] = [bare, *stages]
    seen: list[list[dict[str, Any]]] = [[] for _ in ways]
    with ray_running(workers=max(WAYS.values())):
        for number in range(rounds):
            info(f"round {number + 1} of {rounds}")
            for way in range(len(ways)) if number % 2 == 0 else reversed(range(len(ways))):
                seen[way].append(ways[way]())
    timings = [Timing(way.what, tuple(one["rate"] for one in found)) for way, found in zip(ways, seen, strict=True)]
    bands = "+".join(str(source.bands) for source in bare.dense.spec.sources)
    rows = [_row(timing, timings[0], found) for timing, found in zip(timings, seen, strict=True)]
    return Result(
        name=f"{name}, {bands} bands",
        precision=config.map.precision,
        pixels=seen[1][0]["pixels_mapped"],
        held=bare.pixels,
        rows=[
            rows[0],
            *(
                replace(row, tile=stage.tile, tiles_a_task=stage.tiles_a_task(found[0]["tiles_mapped"]))
                for stage, row, found in zip(stages, rows[1:], seen[1:], strict=True)
            ),
        ],
    )


@contextmanager
def ray_running(*, workers: int) -> Iterator[None]:
    """Start Ray on this machine; shut it down at the end unless it was already running."""
    import ray

    from jobs.runtime import ray_cluster

    was_running = ray.is_initialized()
    ray_cluster.ensure(workers=workers)
    try:
        yield
    finally:
        if not was_running:
            ray_cluster.close()


class _Bare:
    """The network without the stage, on the middle of the scene."""

    what = BARE

    def __init__(self, config: Config) -> None:
        workspace = Workspace.of(config)
        spec = MapSpec.of(config, workspace)
        section, bundle = config.map, spec.bundle
        store = PatchStore(workspace.store(config.scenes[0].name))
        check_sources(store, bundle)
        window = _middle(store.shape, bytes_per_pixel=4 * sum(s.bands * s.scale**2 for s in bundle.spec.sources))
        self.sources = [torch.from_numpy(x) for x in scaled_window(store, window, bundle.scaling, halo=bundle.spec.halo)]
        wanted, _ = mappable_pixels(store, window, sources=spec.sources, missing=section.missing)
        self.wanted, self.pixels = torch.from_numpy(wanted), int(wanted.sum())
        self.products = products_of_network(spec.products)
        self.dense = Dense(
            to_device(bundle.network(config.prediction.priors), best_device()),
            precision=section.precision,
            temperature=bundle.networks[0].temperature,
            mc_samples=section.mc_samples,
            seed=section.seed,
        )
        reach = CELL + 2 * bundle.spec.halo
        cell = [x[:, : reach * s.scale, : reach * s.scale] for x, s in zip(self.sources, bundle.spec.sources, strict=True)]
        self.dense(cell, products=self.products)  # warm-up: the first call takes longer

    def __call__(self) -> dict[str, Any]:
        started = time.perf_counter()
        found = self.dense(self.sources, products=self.products, wanted=self.wanted)
        for values in found.values():
            values.cpu()  # a GPU is waited for
        return {"rate": self.pixels / (time.perf_counter() - started)}


def _middle(shape_yx: tuple[int, int], *, bytes_per_pixel: int) -> Window:
    """Return the middle window of a scene, as large as `DENSE_BYTES` allows."""
    most = max(CELL, math.isqrt(DENSE_BYTES // bytes_per_pixel) // CELL * CELL)
    height, width = (min(size, most) for size in shape_yx)
    return Window((shape_yx[0] - height) // 2, (shape_yx[1] - width) // 2, height, width)


class _Stage:
    """The real map stage; each call writes to a temporary folder."""

    def __init__(self, config: Config, folder: str, what: str, tile: int) -> None:
        self.what, self.tile, self.folder = what, tile, folder
        changed = {"workers": WAYS[what], "tile_size": tile}
        self.config = config.model_copy(update={"map": config.map.model_copy(update=changed)})

    def tiles_a_task(self, tiles: int) -> int:
        """Tiles per task of a map of so many; 0 without workers."""
        from jobs.map.ray_workers import tiles_a_task  # imports Ray

        return tiles_a_task(tiles, WAYS[self.what]) if WAYS[self.what] else 0

    def __call__(self) -> dict[str, Any]:
        workspace = Workspace.of(self.config)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            figures = map_scenes(self.config, MapsElsewhere(workspace.url, workspace.run, folder), "", Lease()).figures
        return figures | {"rate": figures["pixels_mapped"] / (figures["tiles_seconds"] + figures["publish_seconds"])}


def _row(timing: Timing, bare: Timing, seen: Sequence[dict[str, Any]]) -> Row:
    shares = {} if timing is bare else {name: statistics.median(one[name] for one in seen) for name in SHARES}
    return Row(timing.name, timing.rate, min(timing.rates), max(timing.rates), timing.ratio(bare), shares)


def table(result: Result) -> str:
    """Format the result as text; see `Row` for the columns."""
    by_network = "" if result.held >= result.pixels else f", {result.held:,} of them by the {BARE}"
    text = [
        machine(),
        "",
        f"{result.name}, {result.precision}; {result.pixels:,} pixels mapped{by_network}",
        f"{'':<18}{'tile':>5}{'a task':>8}{'per second':>12} {'range':>17}  {'ratio':<6}"
        + "".join(f"{name:>12}" for name in SHARES),
    ]
    for row in result.rows:
        shares = "".join(f"{share:>12.1%}" for share in row.shares.values())
        spread = f"{row.slowest:>8,.0f}-{row.fastest:<8,.0f}"
        layout = f"{row.tile or '':>5}{row.tiles_a_task or '':>8}"
        text.append(f"{row.what:<18}{layout}{row.rate:>12,.0f} {spread}  {row.ratio:<6.2f}{shares}".rstrip())
    text.append(f"ratios are to the {BARE}; publishing is a share of the total, the rest of the workers' time before it")
    return "\n".join(text)
