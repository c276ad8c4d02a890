"""mibf bench map: a scene mapped as `mibf map` does it, beside the bare network on the same pixels in memory, in one run.

The bare network (`mibf.dense.Dense`) has the scene's pixels scaled in memory, as many of them as `HELD_BYTES` hold, and
takes them in one call. The stage reads its store, writes its map in work, checks that it covers the scene, publishes it
and describes it; its rate is over all that, from the first tile's beginning on: Ray's start and the model's loading apart.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from jobs.bench.network import machine
from jobs.bench.random_scene import random_model, random_scene
from jobs.bench.timing import Timing
from jobs.config import Config
from jobs.map import map_scenes
from jobs.progress import say
from jobs.scene_maps import Recipe
from jobs.workspace import Workspace
from mibf.cell import CELL
from mibf.dense import Dense
from mibf.errors import InputError
from mibf.precision import DTYPES, best_device, place
from pipeline import storage
from pipeline.batches import scaled_window
from pipeline.grid import Window
from pipeline.lease import Lease
from pipeline.predict import check_sources, to_map
from pipeline.products import of_network
from pipeline.store import PatchStore

BARE = "bare dense"
#: The ways to map, and `map.workers` of each: they share out all cores.
WAYS = {"in this process": 0, "one worker": 1, "two workers": 2}
#: Bytes of scaled pixels that the bare network is given at the most.
HELD_BYTES = 2 << 30
#: Where a stage's time goes, as shares: publishing of all, the others of the workers' time before it.
SHARES = ("publishing", "reading", "computing", "writing", "waiting")


@dataclass(frozen=True)
class Row:
    """One line of the table; rates in mapped pixels a second, the median and the range over rounds."""

    what: str
    rate: float
    slowest: float
    fastest: float
    ratio: float  #: against the bare network of the same round
    shares: dict[str, float] = field(default_factory=dict)  #: medians of `SHARES`; none of the bare network


@dataclass(frozen=True)
class Result:
    """What the benchmark found of one scene."""

    name: str
    tile: int
    precision: str
    pixels: int  #: that the stage maps
    held: int  #: pixels that the bare network is given
    rows: list[Row]


@dataclass(frozen=True)
class MapsElsewhere(Workspace):
    """The stores and the model of a workspace; what `map` writes goes to another folder."""

    folder: str = ""

    @property
    def run_folder(self) -> str:
        """What says how the stage went."""
        return storage.join(self.folder, "runs")

    def map_folder(self, scene: str) -> str:
        """A scene's products."""
        return storage.join(self.folder, "maps", scene)


def bench_map(
    config: Config | None, *, bands: Sequence[int], side: int, rounds: int, precision: str | None = None
) -> Result:
    """Measure the map of a configuration's first scene by its model; without one, of a random scene by a random network.

    Nothing is written but temporary files.

    Args:
        config: prepared and trained.
        bands: of the random scene's sources.
        side: of the random scene in pixels, a multiple of 64.
        rounds: how often each way is timed; every other round in the reverse order.
        precision: of the network, in the place of the configuration's.

    Raises:
        InputError: there is no store or no model, `side` or `precision` cannot be, or workers would be on other machines.
    """
    say("leave the machine alone meanwhile: its other work is measured too")
    check_one_machine()
    check_side(side)
    if precision not in (None, *DTYPES):
        raise InputError(f"--precision {precision}: there are {', '.join(DTYPES)}.")
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        if config is None:
            config = random_scene(Path(folder), bands=bands, side=side)
            random_model(config)
            name = f"{side} x {side} pixels of random values"
        else:
            name = repr(config.name)
        changed = {} if precision is None else {"precision": precision}
        config = config.model_copy(
            update={"scenes": config.scenes[:1], "map": config.map.model_copy(update={"drift": "ignore"} | changed)}
        )
        return _measured(config, name, folder, rounds=rounds)


def check_one_machine() -> None:
    """See that workers are on this machine.

    Raises:
        InputError: they are not.
    """
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        raise InputError("RAY_ADDRESS names a cluster, and this measures one machine; unset it.")


def check_side(side: int) -> None:
    """See that a scene of so many pixels a side can be made.

    Raises:
        InputError: it cannot.
    """
    if side < CELL or side % CELL:
        raise InputError(f"--size {side}: give the scene's side in pixels, a multiple of {CELL}.")


def _measured(config: Config, name: str, folder: str, *, rounds: int) -> Result:
    bare = _Bare(config)
    ways: dict[str, Callable[[], dict[str, Any]]] = {BARE: bare}
    ways |= {what: _Stage(config, folder, workers) for what, workers in WAYS.items()}
    seen: dict[str, list[dict[str, Any]]] = {what: [] for what in ways}
    with ray_at_hand(workers=max(WAYS.values())):
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for what in list(ways) if number % 2 == 0 else reversed(ways):
                seen[what].append(ways[what]())
    timings = {what: Timing(what, tuple(one["rate"] for one in found)) for what, found in seen.items()}
    bands = "+".join(str(source.bands) for source in bare.dense.spec.sources)
    return Result(
        name=f"{name}, {bands} bands",
        tile=config.map.tile,
        precision=config.map.precision,
        pixels=seen["in this process"][0]["pixels_mapped"],
        held=bare.pixels,
        rows=[_row(timing, timings[BARE], seen[what]) for what, timing in timings.items()],
    )


@contextmanager
def ray_at_hand(*, workers: int) -> Iterator[None]:
    """Ray on this machine; closed in the end, unless it was there before."""
    import ray

    from jobs import cluster

    was_there = ray.is_initialized()
    cluster.ensure(workers=workers)
    try:
        yield
    finally:
        if not was_there:
            cluster.close()


class _Bare:
    """The network alone, on the middle of the scene."""

    def __init__(self, config: Config) -> None:
        workspace = Workspace.of(config)
        recipe = Recipe.of(config, workspace)
        section, bundle = config.map, recipe.bundle
        store = PatchStore(workspace.store(config.scenes[0].name))
        check_sources(store, bundle)
        window = _middle(store.shape, bytes_per_pixel=4 * sum(s.bands * s.scale**2 for s in bundle.spec.sources))
        self.sources = [torch.from_numpy(x) for x in scaled_window(store, window, bundle.scaling, halo=bundle.spec.halo)]
        wanted, _ = to_map(store, window, sources=recipe.sources, missing=section.missing)
        self.wanted, self.pixels = torch.from_numpy(wanted), int(wanted.sum())
        self.products = of_network(recipe.products)
        self.dense = Dense(
            place(bundle.network(config.prediction.priors), best_device()),
            precision=section.precision,
            temperature=bundle.temperature,
            draws=section.draws,
            seed=section.seed,
        )
        reach = CELL + 2 * bundle.spec.halo
        cell = [x[:, : reach * s.scale, : reach * s.scale] for x, s in zip(self.sources, bundle.spec.sources, strict=True)]
        self.dense(cell, products=self.products)  # the first call takes longer

    def __call__(self) -> dict[str, Any]:
        started = time.perf_counter()
        found = self.dense(self.sources, products=self.products, wanted=self.wanted)
        for values in found.values():
            values.cpu()  # a GPU is waited for
        return {"rate": self.pixels / (time.perf_counter() - started)}


def _middle(shape_yx: tuple[int, int], *, bytes_per_pixel: int) -> Window:
    """The middle of a scene, as much of it as may be held."""
    most = max(CELL, math.isqrt(HELD_BYTES // bytes_per_pixel) // CELL * CELL)
    height, width = (min(size, most) for size in shape_yx)
    return Window((shape_yx[0] - height) // 2, (shape_yx[1] - width) // 2, height, width)


class _Stage:
    """The stage as the product does it, each time into a folder of its own that is removed afterwards."""

    def __init__(self, config: Config, folder: str, workers: int) -> None:
        self.config = config.model_copy(update={"map": config.map.model_copy(update={"workers": workers})})
        self.folder = folder

    def __call__(self) -> dict[str, Any]:
        workspace = Workspace.of(self.config)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            figures = map_scenes(self.config, MapsElsewhere(workspace.url, workspace.run, folder), "", Lease()).figures
        return figures | {"rate": figures["pixels_mapped"] / (figures["tiles_seconds"] + figures["publish_seconds"])}


def _row(timing: Timing, bare: Timing, seen: Sequence[dict[str, Any]]) -> Row:
    shares = {} if timing is bare else {name: statistics.median(one[name] for one in seen) for name in SHARES}
    return Row(timing.name, timing.rate, min(timing.rates), max(timing.rates), timing.ratio(bare), shares)


def table(result: Result) -> str:
    """The result as text; columns are told in `Row`."""
    held = "" if result.held >= result.pixels else f", of which {BARE} is given {result.held:,}"
    text = [
        machine(),
        "",
        f"{result.name}, {result.precision}, tiles of {result.tile}; {result.pixels:,} pixels mapped{held}",
        f"{'':<18}{'per second':>11} {'range':>17}  {'ratio':<6}" + "".join(f"{name:>12}" for name in SHARES),
    ]
    for row in result.rows:
        shares = "".join(f"{share:>12.1%}" for share in row.shares.values())
        spread = f"{row.slowest:>8,.0f}-{row.fastest:<8,.0f}"
        text.append(f"{row.what:<18}{row.rate:>11,.0f} {spread}  {row.ratio:<6.2f}{shares}".rstrip())
    text.append(f"ratios are against {BARE}; publishing is a share of all, the others of the workers' time before it")
    return "\n".join(text)


def as_json(result: Result) -> dict[str, Any]:
    """The result for machines."""
    return {"machine": machine(), "result": asdict(result)}
