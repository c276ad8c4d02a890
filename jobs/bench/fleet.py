"""mibf bench fleet: what many scenes take, by a model from a few measured constants; and a million tiles, simulated.

The model is arithmetic on paper: time of each part of a fleet's maps, objects, requests and bytes, and which part is the
first to hold up all others as workers are added. The simulation is the real planning, ledger and choice of what is due,
with tiles that take no time and of which some fail.
"""

from __future__ import annotations

import hashlib
import math
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.bench.map_memory import alone
from jobs.bench.memory import peak
from jobs.bench.network import machine
from mibf.errors import InputError
from pipeline import storage
from pipeline.due import classify, due
from pipeline.fill import Records, ShardRecord
from pipeline.grid import Window
from pipeline.ledger import Entry, Ledger
from pipeline.tileprints import fingerprints
from pipeline.tiles import Tile, tiles

#: Attempts after which the simulated reruns leave a tile alone, and shares that fail at each of them.
ATTEMPTS, FAILING = 3, (0.01, 0.2, 0.5)
#: Side of the simulated tiles and shards in pixels, and pixels of the halo.
SIDE, HALO = 512, 3


@dataclass(frozen=True)
class Fleet:
    """Scenes to be mapped, and the constants that the model goes by."""

    scenes: int = 10_000
    pixels: float = 1e8  #: of the reference grid, of each scene
    workers: int = 100
    side_by_side: int = 1  #: scenes that are mapped at a time, each by a driver of its own
    rate: float = 50_000.0  #: pixels a second that one worker maps
    tile: int = 512  #: side in pixels
    sources: int = 2
    input_bytes: float = 6.0  #: stored, of a pixel's sources
    output_bytes: float = 1.0  #: published, of a pixel's products
    products: int = 2
    tile_milliseconds: float = 0.7  #: that a driver takes to have a tile done: schedule it, take its answer, put it down
    publish_seconds: float = 0.8e-6  #: that a driver takes to publish a pixel
    start_seconds: float = 30.0  #: for a job of a scene: Ray's actors, reading the plan and the ledger
    ledger_bytes: float = 60.0  #: of a tile
    part_bytes: float = 8 * 2**20  #: of an upload in parts
    price: float | None = None  #: of a worker's hour


@dataclass(frozen=True)
class Paper:
    """What the model says of a fleet."""

    tiles: int
    seconds: dict[str, float]  #: that each part alone would take, from the first scene to the last
    total_seconds: float
    bottleneck: str  #: the part that takes the most
    most_workers: int  #: beyond which another part than computing takes the most
    worker_hours: float
    cost: float | None
    objects: float  #: that are left: published files, ledgers, stores
    requests: dict[str, float]
    terabytes: dict[str, float]


def on_paper(fleet: Fleet) -> Paper:
    """The model. Parts of one scene follow each other, but for scheduling, which goes on beside computing."""
    tiles_each = math.ceil(math.sqrt(fleet.pixels) / fleet.tile) ** 2
    lanes = fleet.side_by_side
    computing = fleet.pixels / (fleet.rate * fleet.workers / lanes)
    scheduling = tiles_each * fleet.tile_milliseconds / 1000
    publishing = fleet.pixels * fleet.publish_seconds
    rounds = fleet.scenes / lanes
    seconds = {
        "computing": computing * rounds,
        "scheduling": scheduling * rounds,
        "publishing": publishing * rounds,
        "starting": fleet.start_seconds * rounds,
    }
    total = (max(computing, scheduling) + publishing + fleet.start_seconds) * rounds
    hold_up = max(scheduling, publishing, fleet.start_seconds)
    files = fleet.products + 2  # and the item and the picture
    reads = tiles_each * fleet.sources * 2 * (1 + 2 * HALO / fleet.tile) * 4  # values and validity of 2 x 2 shards
    segments = max(1.0, tiles_each / 5000, 4 * math.log(max(computing, 2)))
    upload = fleet.pixels * fleet.output_bytes / fleet.part_bytes + files
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
            "written": fleet.scenes * (fleet.pixels * 2 * fleet.output_bytes + tiles_each * fleet.ledger_bytes) / 1e12,
        },
    )


@dataclass(frozen=True)
class Simulated:
    """What planning, ledger and reruns of so many tiles took, in one process."""

    tiles: int
    scenes: int
    plan_seconds: float
    write_seconds: float  #: of all events of all attempts
    open_seconds: float  #: to read all ledgers once
    due_seconds: float  #: to choose once what is due of all
    ledger_bytes: float  #: a tile
    segments: int
    events: int
    attempts: int  #: at tiles, in all rounds
    dead: int  #: tiles that were left alone at last
    peak_bytes: int


def simulate(count: int, *, scenes: int = 100, seed: int = 0) -> Simulated:
    """Plan about `count` tiles of some scenes, map them on paper with failures, rerun until nothing is due.

    Raises:
        InputError: they are fewer than the scenes.
        RuntimeError: reruns did other than what was due.
    """
    if count < scenes:
        raise InputError(f"--tiles {count}: give {scenes} or more.")
    return alone(_simulated, count, scenes, seed)


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
    """A scene of side x side tiles: mapped, and rerun until nothing is due."""
    clock = _Clock()
    shape = (side * SIDE, side * SIDE)
    windows = [tile.window for tile in tiles("scene", shape, SIDE)]
    shards = [ShardRecord(w, {f"sources/a/c/0/{w.y}/{w.x}": (1, f"{chance.random()}")}, {}) for w in windows]
    clock.begin()
    planned = fingerprints(
        windows,
        Records("", {}, shards),
        model="a" * 20,
        settings="b" * 20,
        sources={"a"},
        halo=HALO,
        side=SIDE,
    )
    plan = clock.seconds()
    attempts = events = dead = 0
    write = open_ = choose = 0.0
    for round_ in range(ATTEMPTS + 2):
        clock.begin()
        ledger = Ledger.open(url)
        open_ = clock.seconds()
        clock.begin()
        wanted = due(planned, ledger.last(), max_attempts=ATTEMPTS, now=time.time())
        choose = clock.seconds()
        dead = len(wanted.dead)
        if not wanted.tiles:
            break
        clock.begin()
        with ledger.writing():
            for window in wanted.tiles:
                failed = chance.random() < FAILING[min(round_, len(FAILING) - 1)]
                ledger.append([_entry(window, planned[window], round_ + 1, failed=failed)])
        write += clock.seconds()
        attempts += len(wanted.tiles)
        events += len(wanted.tiles)
    states = classify(planned, ledger.last())
    if wanted.tiles or sum(state != "done" for state in states.values()) != dead:
        raise RuntimeError(f"{dead} tiles were left alone, and {len(wanted.tiles)} are due still")
    sizes = storage.sizes(url).values()
    return Simulated(len(planned), 1, plan, write, open_, choose, sum(sizes), len(sizes), events, attempts, dead, 0)


def _entry(window: Window, fingerprint: str, attempt: int, *, failed: bool) -> Entry:
    return Entry(
        Tile("scene", window),
        "failed" if failed else "done",
        fingerprint,
        "a" * 20,
        "20260101T000000-abcdef",
        attempt,
        "RuntimeError: sources/a/c/0/1/1: is damaged" if failed else "",
        "host 1234 cpu",
        time.time(),
        time.time(),
        0.1,
        1.0,
        0.1,
        SIDE * SIDE,
        SIDE,
        "" if failed else hashlib.sha256(repr((window, attempt)).encode()).hexdigest(),
    )


class _Clock:
    def begin(self) -> None:
        self._begun = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._begun


def paper_lines(fleet: Fleet, paper: Paper) -> list[str]:
    """The model for a person."""
    parts = ", ".join(f"{part} {_days(value)}" for part, value in paper.seconds.items())
    requests = ", ".join(f"{value:,.3g} {kind}" for kind, value in paper.requests.items())
    terabytes = ", ".join(f"{value:,.1f} TB {kind}" for kind, value in paper.terabytes.items())
    cost = "" if paper.cost is None else f", {paper.cost:,.0f} at {fleet.price:g} an hour"
    return [
        f"{fleet.scenes:,} scenes of {fleet.pixels:.3g} pixels on {fleet.workers:,} workers of {fleet.rate:,.0f} pixels/s, "
        f"{fleet.side_by_side:,} at a time: {paper.tiles:,} tiles",
        f"{_days(paper.total_seconds)}, {paper.worker_hours:,.0f} worker hours{cost}",
        f"each part alone: {parts}",
        f"first bottleneck: {paper.bottleneck}; computing takes the most up to {paper.most_workers:,} workers",
        f"requests: {requests}; {terabytes}; {paper.objects:,.3g} objects are left",
    ]


def _days(seconds: float) -> str:
    return f"{seconds / 86400:,.1f} days" if seconds >= 2 * 86400 else f"{seconds / 3600:,.1f} h"


def simulated_lines(found: Simulated) -> list[str]:
    """The simulation for a person."""
    return [
        machine(),
        f"{found.tiles:,} tiles of {found.scenes:,} scenes: planned in {found.plan_seconds:.1f} s, "
        f"{found.attempts:,} attempts put down in {found.write_seconds:.1f} s, ledgers read in {found.open_seconds:.1f} s, "
        f"what is due chosen in {found.due_seconds:.1f} s",
        f"{found.ledger_bytes:.0f} bytes of ledger a tile in {found.segments:,} segments; {found.dead:,} tiles left alone "
        f"after {ATTEMPTS} attempts; peak memory {found.peak_bytes / 1e6:,.0f} MB",
    ]


def as_json(fleet: Fleet, simulated: Simulated | None) -> dict[str, Any]:
    """Both for machines."""
    return {
        "machine": machine(),
        "paper": asdict(fleet) | asdict(on_paper(fleet)),
        "simulated": None if simulated is None else asdict(simulated),
    }
