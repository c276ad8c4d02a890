"""Human-readable summaries of maps: what was mapped, where the time went, and the causes of missing tiles."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.map.request import TileRequest
from jobs.map.summary import CAUSE_LENGTH, CAUSES_SHOWN, format_causes, incomplete_lines, published_line, timing_lines
from pipeline.grid import Window
from pipeline.maps.ledger import TileState
from pipeline.maps.tile_selection import classify

WINDOWS = [Window(0, x, 64, 64) for x in (0, 64, 128)]


def tile_state(failed_attempts: int, finished: float) -> TileState:
    """A tile that has failed a number of times under its current fingerprint."""
    return TileState("failed", "now", "m", failed_attempts, failed_attempts, "no space left", finished, "", 0, 0)


def scene(last: dict[Window, TileState], item: dict[str, Any] | None = None) -> Any:
    """A scene of three tiles with these last events."""
    planned = dict.fromkeys(WINDOWS, "now")
    return SimpleNamespace(
        name="valley",
        tasks=planned,
        empty=frozenset(),
        store=SimpleNamespace(shape=(64, 192)),
        ledger=SimpleNamespace(last=lambda: last),
        pixels=lambda: 12000,
        states=lambda: classify(planned, last),
        item=lambda: item,
        causes=lambda: [("no space left", ["valley/y0_x0"])],
    )


def figures(tiles: int) -> dict[str, Any]:
    shares = {"reading": 0.25, "computing": 0.9, "writing": 0.1, "waiting": 0.0}
    return {"tiles_mapped": tiles, "tiles_seconds": 10, "pixels_per_second": 4096.0, "publish_seconds": 1.5} | shares


def test_published_line_counts_mapped_pixels_and_tiles() -> None:
    assert published_line(scene({})) == "valley: 12,000 of 12,288 pixels mapped, 3 tiles"


@pytest.mark.parametrize(("workers", "where"), [(0, "in this process"), (1, "by 1 worker, excluding their startup")])
def test_timing_lines_give_throughput_and_shares(workers: int, where: str) -> None:
    assert timing_lines(figures(1), workers, published=True) == [
        f"1 tile mapped in 10 s {where}: 4,096 pixels/s",
        "shares of that time (they may overlap): reading 25.0 %, computing 90.0 %, writing 10.0 %, waiting 0.0 %; "
        "publishing took another 1.5 s",
    ]


@pytest.mark.parametrize(("published", "what"), [(True, "the files were published again"), (False, "nothing was changed")])
def test_timing_lines_without_mapped_tiles_say_what_was_done(published: bool, what: str) -> None:
    assert timing_lines(figures(0), 0, published=published) == [f"no tiles to map; {what}"]


def test_incomplete_lines_count_tiles_by_state_and_name_the_cause() -> None:
    lines = incomplete_lines(scene({WINDOWS[0]: tile_state(1, time.time())}), TileRequest())
    assert lines == [
        "valley: 1 of 3 tiles failed and 2 of 3 are pending; nothing was published",
        "  valley/y0_x0: no space left",
    ]
    kept = incomplete_lines(scene({WINDOWS[0]: tile_state(1, time.time())}, item={}), TileRequest())
    assert kept[0].endswith("; the earlier map is still published")


def test_incomplete_lines_list_exhausted_and_delayed_tiles() -> None:
    last = {WINDOWS[0]: tile_state(3, 2e9), WINDOWS[1]: tile_state(1, 2e9)}
    *_, exhausted, delayed = incomplete_lines(scene(last), TileRequest(max_attempts=3, backoff=60))
    assert exhausted == (
        "  skipped 1 of the failed tiles, which had 3 or more failed attempts; run `mibf map` to retry them"
    )
    assert delayed == "  1 of the failed tiles will not be retried before 2033-05-18T03:34:20Z"  # 60 s after 2e9


def test_causes_are_limited_in_number_tiles_and_length() -> None:
    keys = [f"valley/y0_x{x}" for x in range(5)]
    assert format_causes([("no space left", keys)]) == [
        "  valley/y0_x0, valley/y0_x1, valley/y0_x2 and 2 more: no space left"
    ]
    lines = format_causes([("word " * 200, ["a"])] * (CAUSES_SHOWN + 1))
    assert lines[-1] == "  and 1 other cause; `mibf status --json` lists all"
    assert len(lines) == CAUSES_SHOWN + 1
    assert all(len(line) <= CAUSE_LENGTH + len("  a: ") and line.endswith(" ...") for line in lines[:-1])
    assert format_causes([]) == []
