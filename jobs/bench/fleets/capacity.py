"""mibf bench fleet: capacity estimate for many scenes from a few measured constants, and a simulation of many tiles.

The estimate is plain arithmetic: the time of each part of mapping a fleet, objects, requests and bytes, and the part that
becomes the bottleneck first as workers are added. The simulation runs the real planning, ledger and tile selection;
computing a tile takes no time, and some tiles fail.
"""

from __future__ import annotations

import hashlib
import math
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jobs.bench.harness.processes import run_in_subprocess
from jobs.bench.harness.working_set import peak
from jobs.bench.network import machine
from mibf.errors import InputError
from pipeline.grid import Tile, Window, tile_grid
from pipeline.io import checksums
from pipeline.maps.fingerprints import fingerprints
from pipeline.maps.ledger import Ledger, LedgerEvent
from pipeline.maps.tile_selection import classify, select_tiles
from pipeline.publishing.page.page_file import static_files
from pipeline.store.records import ShardRecord, StoreRecords

#: Maximum attempts per tile in the simulated reruns, and the share that fails at each attempt.
ATTEMPTS, FAILING = 3, (0.01, 0.2, 0.5)
#: Side of the simulated tiles and shards, and halo width, in pixels.
SIDE, HALO = 512, 3
#: Requests that read a source of a tile of 512 pixels with its halo, where a worker maps every second tile: see
#: docs/performance.md.
TILE_READS = 8


#: Files beside the rasters of a map of classes and confidence: item, quicklook, two QGIS styles and GDAL's table of the
#: classes. Their bytes together, and those of the page's picture of a source, where they were measured.
SMALL_FILES, SMALL_BYTES, PICTURE_BYTES = 5, 80e3, 300e3

#: Who builds and uploads the published files of a scene.
Publisher = Literal["driver", "workers"]
#: Workers and pixels of the table of bottlenecks, and pixels of each of its scenes.
TABLE_WORKERS, TABLE_PIXELS, TABLE_SCENE = (10, 100, 1000), (1e10, 1e12), 1e8


@dataclass(frozen=True)
class Fleet:
    """Scenes to map, and the constants of the estimate."""

    scenes: int = 10_000
    pixels: float = 1e8  #: per scene, on the reference grid
    workers: int = 100
    side_by_side: int = 1  #: scenes mapped in parallel, each by its own driver
    rate: float = 50_000.0  #: pixels per second of one worker
    tile: int = 512  #: tile side in pixels
    sources: int = 2
    input_bytes: float = 6.0  #: stored bytes per pixel, all sources
    output_bytes: float = 1.0  #: published bytes per pixel, all products
    products: int = 2
    tile_milliseconds: float = 0.7  #: driver time per tile: schedule it, receive its result, record it
    publish_seconds: float = 0.4e-6  #: time of one process to publish one pixel
    publisher: Publisher = "workers"  #: who publishes: the scene's driver alone, or its workers in parallel
    tile_gets: float | None = None  #: GET requests per tile for its input; None: `TILE_READS` per source
    get_rate: float = 5500.0  #: GET requests per second that the bucket answers: what S3 documents per prefix
    start_seconds: float = 30.0  #: start-up of a scene's job: Ray actors, reading plan and ledger
    ledger_bytes: float = 60.0  #: per tile
    part_bytes: float = 8 * 2**20  #: part size of a multipart upload
    page: bool = True  #: whether a page is published with each map (`map.page`)
    price: float | None = None  #: per worker-hour


@dataclass(frozen=True)
class Paper:
    """Estimate for a fleet."""

    tiles: int
    seconds: dict[str, float]  #: total of each part over all scenes, if it ran alone
    total_seconds: float
    bottleneck: str  #: the part that takes longest
    most_workers: int  #: number of workers beyond which computing is no longer the bottleneck
    worker_hours: float
    cost: float | None
    objects: float  #: stored at the end: published files, ledgers, stores
    requests: dict[str, float]
    terabytes: dict[str, float]


def on_paper(fleet: Fleet) -> Paper:
    """Estimate a fleet.

    The parts of a scene run one after the other, except scheduling and the bucket's answers, which overlap computing. The
    scenes mapped in parallel share the workers and the bucket.
    """
    tiles_each = math.ceil(math.sqrt(fleet.pixels) / fleet.tile) ** 2
    lanes = fleet.side_by_side
    computing = fleet.pixels / (fleet.rate * fleet.workers / lanes)
    scheduling = tiles_each * fleet.tile_milliseconds / 1000
    by_workers = fleet.publisher == "workers"
    publishing = fleet.pixels * fleet.publish_seconds / (fleet.workers / lanes if by_workers else 1)
    rounds = fleet.scenes / lanes
    gets = fleet.tile_gets
    if gets is None:
        gets = fleet.sources * TILE_READS
    reads = tiles_each * gets
    answering = reads / (fleet.get_rate / lanes)
    seconds = {
        "computing": computing * rounds,
        "scheduling": scheduling * rounds,
        "requests": answering * rounds,
        "publishing": publishing * rounds,
        "starting": fleet.start_seconds * rounds,
    }
    total = (max(computing, scheduling, answering) + publishing + fleet.start_seconds) * rounds
    hold_up = max(scheduling, answering, fleet.start_seconds, 0 if by_workers else publishing)
    page_files, page_bytes = page_size(fleet.sources) if fleet.page else (0, 0.0)
    small_files = SMALL_FILES + page_files
    files = fleet.products + small_files
    segments = max(1.0, tiles_each / 5000, 4 * math.log(max(computing, 2)))
    upload = fleet.pixels * fleet.output_bytes / fleet.part_bytes + files
    small_bytes = SMALL_BYTES + page_bytes
    return Paper(
        tiles=tiles_each * fleet.scenes,
        seconds=seconds,
        total_seconds=total,
        bottleneck=max(seconds, key=lambda part: seconds[part]),
        most_workers=max(1, int(fleet.pixels / (fleet.rate * hold_up)) * lanes),
        worker_hours=total * fleet.workers / 3600,
        cost=None if fleet.price is None else total * fleet.workers / 3600 * fleet.price,
        objects=fleet.scenes * (files + segments + tiles_each * fleet.sources * 2),
        requests={
            "GET": fleet.scenes * (reads + tiles_each * fleet.products + segments),
            "PUT": fleet.scenes * (tiles_each * fleet.products + upload + segments),
        },
        terabytes={
            "read": fleet.scenes * fleet.pixels * (fleet.input_bytes + fleet.output_bytes) / 1e12,
            "written": fleet.scenes
            * (fleet.pixels * 2 * fleet.output_bytes + tiles_each * fleet.ledger_bytes + small_bytes)
            / 1e12,
        },
    )


def page_size(sources: int) -> tuple[int, float]:
    """Objects and bytes of a map's page, of a scene without labels: the static files, the list of tiles, the pictures."""
    static = static_files()
    return len(static) + 1 + sources, sum(len(file.content) for file in static) + sources * PICTURE_BYTES


def bottlenecks(fleet: Fleet) -> list[tuple[float, int, Paper]]:
    """The estimates for the pixels and workers of the table, with the constants of a fleet: (pixels, workers, estimate).

    Scenes have `TABLE_SCENE` pixels; the share of workers that map one scene together is that of the fleet.
    """
    found = []
    for pixels in TABLE_PIXELS:
        for workers in TABLE_WORKERS:
            scenes = round(pixels / TABLE_SCENE)
            lanes = max(1, min(scenes, workers, round(fleet.side_by_side * workers / fleet.workers)))
            case = replace(fleet, scenes=scenes, pixels=TABLE_SCENE, workers=workers, side_by_side=lanes)
            found.append((pixels, workers, on_paper(case)))
    return found


@dataclass(frozen=True)
class Simulated:
    """Measurements of planning, ledger and reruns for this many tiles, in one process."""

    tiles: int
    scenes: int
    plan_seconds: float
    write_seconds: float  #: to record the events of all attempts
    open_seconds: float  #: to read all ledgers once
    due_seconds: float  #: to select the tiles to map once, in all scenes
    ledger_bytes: float  #: per tile
    segments: int
    events: int
    attempts: int  #: number of tile attempts in all rounds
    dead: int  #: exhausted tiles: failed at every attempt
    peak_bytes: int


def simulate(count: int, *, scenes: int = 100, seed: int = 0) -> Simulated:
    """Plan about `count` tiles in some scenes, simulate mapping with failures, and rerun until no tile is left to map.

    Raises:
        InputError: `count` is smaller than the number of scenes.
        RuntimeError: tiles remain to be mapped, or the exhausted tiles do not match the ledger.
    """
    if count < scenes:
        raise InputError(f"--simulate {count}: must be at least {scenes}.")
    return run_in_subprocess(_simulated, count, scenes, seed)


def _simulated(count: int, scenes: int, seed: int) -> Simulated:
    found = Simulated(0, scenes, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        for number in range(scenes):
            one = _scene(
                str(Path(folder) / f"{number}"), round(math.sqrt(count / scenes)), random.Random(f"{seed} {number}")
            )
            added = {name: value + getattr(found, name) for name, value in vars(one).items() if name != "scenes"}
            found = replace(found, **added)
    return replace(found, ledger_bytes=found.ledger_bytes / found.tiles, peak_bytes=peak())


def _scene(url: str, side: int, chance: random.Random) -> Simulated:
    """Simulate one scene of side x side tiles: map it, and rerun until no tile is left to map."""
    clock = _Clock()
    shape = (side * SIDE, side * SIDE)
    windows = [tile.window for tile in tile_grid("scene", shape, SIDE)]
    shards = [ShardRecord(w, {f"sources/a/c/0/{w.y}/{w.x}": (1, f"{chance.random()}")}, {}) for w in windows]
    clock.begin()
    planned = fingerprints(
        windows,
        StoreRecords("", {}, shards),
        model="a" * 20,
        settings="b" * 20,
        sources={"a"},
        halo=HALO,
        side=SIDE,
    )
    plan = clock.seconds()
    attempts = events = exhausted = 0
    write = opening = choose = 0.0
    for number in range(ATTEMPTS + 2):
        clock.begin()
        ledger = Ledger.open(url)
        opening = clock.seconds()
        clock.begin()
        wanted = select_tiles(planned, ledger.last(), max_attempts=ATTEMPTS, now=time.time())
        choose = clock.seconds()
        exhausted = len(wanted.exhausted)
        if not wanted.tiles:
            break
        clock.begin()
        with ledger.writing():
            for window in wanted.tiles:
                failed = chance.random() < FAILING[min(number, len(FAILING) - 1)]
                ledger.append([_entry(window, planned[window], number + 1, failed=failed)])
        write += clock.seconds()
        attempts += len(wanted.tiles)
        events += len(wanted.tiles)
    states = classify(planned, ledger.last())
    if wanted.tiles or sum(state != "done" for state in states.values()) != exhausted:
        raise RuntimeError(f"{exhausted} tiles are exhausted, and {len(wanted.tiles)} tiles remain to be mapped")
    sizes = checksums.object_sizes(url).values()
    return Simulated(len(planned), 1, plan, write, opening, choose, sum(sizes), len(sizes), events, attempts, exhausted, 0)


def _entry(window: Window, fingerprint: str, attempt: int, *, failed: bool) -> LedgerEvent:
    now = time.time()
    return LedgerEvent(
        tile=Tile("scene", window),
        state="failed" if failed else "done",
        fingerprint=fingerprint,
        model="a" * 20,
        run="20260101T000000-abcdef",
        attempt=attempt,
        cause="RuntimeError: sources/a/c/0/1/1: is damaged" if failed else "",
        worker="host 1234 cpu",
        started=now,
        finished=now,
        read_seconds=0.1,
        compute_seconds=1.0,
        write_seconds=0.1,
        pixels=SIDE * SIDE,
        rows=SIDE,
        checksum="" if failed else hashlib.sha256(repr((window, attempt)).encode()).hexdigest(),
    )


class _Clock:
    def begin(self) -> None:
        self._started = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._started


@dataclass(frozen=True)
class Capacity:
    """The estimate for a fleet, and the simulation if one was run."""

    fleet: Fleet
    simulated: Simulated | None = None

    def lines(self) -> list[str]:
        """Format the estimate and the simulation as lines of text."""
        lines = [*paper_lines(self.fleet, on_paper(self.fleet)), "", *table_lines(self.fleet)]
        return lines if self.simulated is None else [*lines, "", *simulated_lines(self.simulated)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "machine": machine(),
            "paper": asdict(self.fleet) | asdict(on_paper(self.fleet)),
            "bottlenecks": [
                {"pixels": pixels, "workers": workers, "seconds": paper.total_seconds, "bottleneck": paper.bottleneck}
                for pixels, workers, paper in bottlenecks(self.fleet)
            ],
            "simulated": None if self.simulated is None else asdict(self.simulated),
        }


def paper_lines(fleet: Fleet, paper: Paper) -> list[str]:
    """Format the estimate as text."""
    parts = ", ".join(f"{part} {_days(value)}" for part, value in paper.seconds.items())
    requests = ", ".join(f"{value:,.3g} {kind}" for kind, value in paper.requests.items())
    terabytes = ", ".join(f"{value:,.1f} TB {kind}" for kind, value in paper.terabytes.items())
    cost = "" if paper.cost is None else f", {paper.cost:,.0f} at {fleet.price:g} per worker-hour"
    return [
        f"{fleet.scenes:,} scenes of {fleet.pixels:.3g} pixels on {fleet.workers:,} workers of {fleet.rate:,.0f} pixels/s, "
        f"{fleet.side_by_side:,} in parallel: {paper.tiles:,} tiles",
        f"{_days(paper.total_seconds)}, {paper.worker_hours:,.0f} worker-hours{cost}",
        f"each part alone: {parts}",
        f"first bottleneck: {paper.bottleneck}; computing is the bottleneck up to {paper.most_workers:,} workers",
        f"requests: {requests}; {terabytes}; {paper.objects:,.3g} objects stored",
    ]


def table_lines(fleet: Fleet) -> list[str]:
    """Format the table of bottlenecks as text."""
    return [f"{'pixels':>8} {'workers':>8} {'time':>12}  first bottleneck"] + [
        f"{pixels:>8.0e} {workers:>8,} {_days(paper.total_seconds):>12}  {paper.bottleneck}"
        for pixels, workers, paper in bottlenecks(fleet)
    ]


def _days(seconds: float) -> str:
    return f"{seconds / 86400:,.1f} days" if seconds >= 2 * 86400 else f"{seconds / 3600:,.1f} h"


def simulated_lines(found: Simulated) -> list[str]:
    """Format the simulation as text."""
    return [
        machine(),
        f"{found.tiles:,} tiles in {found.scenes:,} scenes: planned in {found.plan_seconds:.1f} s, "
        f"{found.attempts:,} attempts recorded in {found.write_seconds:.1f} s, ledgers read in {found.open_seconds:.1f} s, "
        f"tiles to map selected in {found.due_seconds:.1f} s",
        f"{found.ledger_bytes:.0f} ledger bytes per tile in {found.segments:,} segments; {found.dead:,} tiles exhausted "
        f"after {ATTEMPTS} attempts; peak memory {found.peak_bytes / 1e6:,.0f} MB",
    ]
