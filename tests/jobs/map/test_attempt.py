"""One attempt at tiles: what is recorded of every outcome, and how the timings add up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.config.config import ResourcesSection
from jobs.map import attempt
from jobs.map.attempt import WORKER_DIED, Attempt, MapTimings
from jobs.workflow.errors import StageError
from pipeline.grid import Tile
from pipeline.io.lease import Lease
from pipeline.maps.ledger import Ledger
from pipeline.maps.outcome import DeviceFailedError, TileOutcome
from pipeline.maps.tile_selection import classify, select_tiles
from tests.support.ledgers import WINDOWS, memory_url

TILES = [Tile("scene", window) for window in WINDOWS]


def outcome(tile: Tile, **fields: Any) -> TileOutcome:
    """A tile mapped in a second, of 64 pixels."""
    return TileOutcome(tile=tile, **{"started": 10.0, "finished": 11.0, "pixels": 64, "checksum": "c"} | fields)


# --- timings


def test_figures_are_shares_of_all_workers_time_from_first_start_to_last_end() -> None:
    timings = MapTimings()
    timings.add(outcome(TILES[0], finished=14.0, read_seconds=1.0, compute_seconds=2.0, write_seconds=0.5, rows=8))
    timings.add(outcome(TILES[1], started=12.0, finished=20.0, read_seconds=1.0, compute_seconds=4.0, rows=4))
    timings.publish = 10.0
    assert timings.figures(workers=2) == {
        "tiles_mapped": 2,
        "pixels_mapped": 128,
        "tiles_seconds": 10.0,
        "pixels_per_second": 12.8,
        "reading": 0.1,
        "computing": 0.3,
        "writing": 0.025,
        "waiting": 0.575,
        "publish_seconds": 10.0,
        "publishing": 0.5,
        "rows_in_work": [4, 8],
    }
    assert timings.figures(workers=0)["computing"] == 0.6, "without workers, this process is one"


def test_failed_tile_counts_with_its_time_only() -> None:
    timings = MapTimings()
    timings.add(outcome(TILES[0], cause="no space left", read_seconds=1.0))
    assert timings.figures(workers=0) == {"tiles_mapped": 0, "publish_seconds": 0.0}
    timings.add(outcome(TILES[1], started=11.0, finished=12.0))
    figures = timings.figures(workers=0)
    assert (figures["tiles_mapped"], figures["pixels_mapped"]) == (1, 64)
    assert figures["reading"] == 0.5


def test_overlapping_steps_leave_no_negative_waiting_time() -> None:
    timings = MapTimings()
    timings.add(outcome(TILES[0], read_seconds=0.9, compute_seconds=0.9))
    assert timings.figures(workers=1)["waiting"] == 0


# --- outcomes


Take = Callable[[TileOutcome], None]


class Mapping:
    """A scene of four tiles with a ledger in memory, mapped by a function instead of the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, map_tiles: Callable[[Sequence[Tile], Take], None]) -> None:
        monkeypatch.setattr(attempt, "_executor", lambda *_, **__: map_tiles)
        self.ledger = Ledger.open(memory_url())
        planned, last = dict.fromkeys(WINDOWS[:2], "now"), self.ledger.last
        scene: Any = SimpleNamespace(
            ledger=self.ledger,
            planned=dict.fromkeys(WINDOWS, "now"),
            states=lambda: classify(planned, last()),
            retry_selection=lambda tiles: select_tiles(planned, last(), only=[tile.window for tile in tiles], now=0),
        )
        config = SimpleNamespace(run="main", map=SimpleNamespace(workers=0))
        spec: Any = SimpleNamespace(config=config, digest="m")
        self.timings = MapTimings()
        self.done: list[object] = []
        self._attempt = Attempt(spec, {"scene": scene}, "run", Lease(), self.timings, done=self.done.append)

    def run(self, tiles: Sequence[Tile]) -> list[Tile]:
        with self.ledger.writing():
            return self._attempt.run(tiles, isolated=False)

    def recorded(self) -> list[tuple[int, str, int, str]]:
        """Column, state, attempt and cause of the events, in order."""
        return [(row["x"], row["state"], row["attempt"], row["cause"]) for row in self.ledger.table().to_pylist()]


def test_outcomes_are_recorded_with_the_number_of_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    causes = {TILES[0]: "", TILES[1]: "no space left"}

    def map_tiles(tiles: Sequence[Tile], take: Take) -> None:
        for tile in tiles:
            take(outcome(tile, cause=causes[tile]))

    mapping = Mapping(monkeypatch, map_tiles)
    assert mapping.run(TILES[:2]) == TILES[1:2]
    assert not mapping.done
    causes[TILES[1]] = ""
    assert mapping.run(TILES[1:2]) == []
    assert len(mapping.done) == 1, "called once all tiles of the scene are done"
    assert mapping.recorded() == [(0, "done", 1, ""), (8, "failed", 1, "no space left"), (8, "done", 2, "")]


def test_tile_reported_twice_is_recorded_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def map_tiles(tiles: Sequence[Tile], take: Take) -> None:
        for tile in (tiles[0], tiles[0], tiles[1]):
            take(outcome(tile))

    mapping = Mapping(monkeypatch, map_tiles)
    mapping.run(TILES[:2])
    assert mapping.recorded() == [(0, "done", 1, ""), (8, "done", 1, "")]
    assert (mapping.timings.tiles, mapping.timings.pixels) == (2, 128)


def test_failure_is_dated_by_the_drivers_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The delay before a retry counts from it; the worker's clock is two hours ahead."""
    ahead = time.time() + 7200

    def map_tiles(tiles: Sequence[Tile], take: Take) -> None:
        take(outcome(tiles[0], cause="no space left", started=ahead, finished=ahead))

    mapping = Mapping(monkeypatch, map_tiles)
    mapping.run(TILES[:1])
    failed = mapping.ledger.last()[WINDOWS[0]]
    assert failed.finished == pytest.approx(time.time(), abs=60)
    selected = select_tiles({WINDOWS[0]: "now"}, mapping.ledger.last(), backoff_seconds=600, now=time.time() + 601)
    assert selected.tiles == [WINDOWS[0]]


def test_failed_device_of_this_process_ends_the_map_and_no_tile_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def map(self, tiles: Sequence[Tile]) -> Iterator[TileOutcome]:
            yield outcome(tiles[0])
            raise DeviceFailedError(tiles[1], "RuntimeError: CUDA error: unspecified launch failure")

    monkeypatch.setattr(attempt, "TileMapper", Failing)
    monkeypatch.setattr(attempt, "make_job", lambda *_: None)
    section = SimpleNamespace(workers=0, precision="float32")
    config: Any = SimpleNamespace(config=SimpleNamespace(map=section, resources=ResourcesSection()))
    map_tiles = attempt._executor(config, {}, isolated=False)
    mapping = Mapping(monkeypatch, map_tiles)
    with pytest.raises(StageError, match=r"scene/.*CUDA error: unspecified launch failure.*no tile counts as failed"):
        mapping.run(TILES)
    assert mapping.recorded() == [(0, "done", 1, "")]


def test_tile_without_outcome_fails_because_its_worker_died(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.time()
    mapping = Mapping(monkeypatch, lambda tiles, take: take(outcome(tiles[0])))
    mapping.run(TILES[:2])
    assert mapping.recorded() == [(0, "done", 1, ""), (8, "failed", 1, WORKER_DIED)]
    died = mapping.ledger.last()[WINDOWS[1]]
    assert died.finished is not None
    assert died.finished >= before - 0.001, "so that the delay before its next attempt counts from now"
    assert mapping.timings.tiles == 1
