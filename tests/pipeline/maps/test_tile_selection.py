"""Selection of the tiles to map: their states, retries with backoff, and resuming after a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grid import Window
from pipeline.maps.ledger import Ledger, LedgerEvent, State, TileState
from pipeline.maps.tile_selection import classify, select_tiles
from tests.support.ledgers import STATES, WINDOWS, histories, make_event, memory_url, write_ledger

planned_tiles = st.dictionaries(st.sampled_from(WINDOWS), st.sampled_from(["before", "now"]), max_size=4)

tile_states = st.builds(
    TileState,
    state=st.sampled_from(STATES),
    fingerprint=st.sampled_from(["before", "now"]),
    model=st.just(""),
    attempts=st.integers(1, 2000),
    failed_attempts=st.integers(1, 2000),
    cause=st.just(""),
    finished=st.none() | st.floats(0, 100),
    checksum=st.just(""),
    pixels=st.just(0),
    rows=st.just(0),
)

lasts = st.dictionaries(st.sampled_from(WINDOWS), tile_states, max_size=4)


@pytest.mark.parametrize(
    ("found", "fingerprint", "expected"),
    [
        (None, "", "pending"),
        *((state, "now", state) for state in STATES),
        ("pending", "before", "pending"),
        *((state, "before", "stale") for state in ("done", "failed", "stale")),
    ],
)
def test_classify_returns_the_state_of_a_tile(found: State | None, fingerprint: str, expected: State) -> None:
    last = Ledger(memory_url())
    last.append([] if found is None else [make_event(state=found, fingerprint=fingerprint)])
    assert classify({WINDOWS[0]: "now"}, last.last()) == {WINDOWS[0]: expected}


@given(
    planned=planned_tiles,
    last=lasts,
    states=st.sets(st.sampled_from(STATES)),
    only=st.none() | st.sets(st.sampled_from(WINDOWS)),
    max_attempts=st.none() | st.integers(1, 5),
    backoff_seconds=st.floats(0, 50),
    now=st.floats(0, 200),
)
def test_requested_tiles_are_done_selected_exhausted_or_backing_off(
    planned: dict[Window, str], last: dict[Window, TileState], states: set[State], **asked: Any
) -> None:
    state = classify(planned, last)
    assert list(state) == list(planned)
    assert set(state.values()) <= set(STATES)
    found = select_tiles(planned, last, states=states, **asked)
    lists = (found.tiles, found.exhausted, found.backing_off)
    listed = [window for windows in lists for window in windows]
    assert len(set(listed)) == len(listed), "each tile is in only one list"
    for windows in lists:
        assert windows == [window for window in planned if window in windows], "lists keep the planned order"
    only = asked["only"]
    wanted = {w for w in planned if state[w] in states and state[w] != "done" and (only is None or w in only)}
    assert set(listed) == wanted
    assert all(state[window] == "failed" for window in (*found.exhausted, *found.backing_off))
    assert (found.retry_at is None) == (not found.backing_off)
    if found.retry_at is not None:
        assert found.retry_at > asked["now"]
        later = select_tiles(planned, last, states=states, **asked | {"now": found.retry_at})
        assert set(later.tiles) > set(found.tiles), "at that time the first tile that is backing off is selected"


@given(planned_tiles, histories, st.integers(0, 12))
def test_selected_tiles_are_not_selected_again_once_done(
    planned: dict[Window, str], history: list[LedgerEvent], cut: int
) -> None:
    """Also after a crash: from any prefix of the events, the next run reaches the same state."""
    for part in (history, history[:cut]):
        ledger = Ledger(memory_url())
        ledger.append(part)
        left = select_tiles(planned, ledger.last(), now=0.0)
        assert {w: classify(planned, ledger.last())[w] for w in planned if w not in left.tiles} == {
            w: "done" for w in planned if w not in left.tiles
        }
        ledger.append(make_event(window, "done", planned[window]) for window in left.tiles)
        assert select_tiles(planned, ledger.last(), now=0.0).tiles == []
        assert classify(planned, ledger.last()) == dict.fromkeys(planned, "done")


def test_resuming_from_any_prefix_of_segments_gives_the_same_result(tmp_path: Path) -> None:
    planned = dict.fromkeys(WINDOWS, "now")
    whole = tmp_path / "whole"
    for i, window in enumerate(WINDOWS):
        write_ledger(str(whole), [make_event(window, "failed", attempt=1), make_event(window, attempt=2, checksum=f"{i}")])
    for count in range(len(WINDOWS) + 1):
        part = tmp_path / f"part{count}"
        part.mkdir()
        for segment in sorted(whole.iterdir())[:count]:
            (part / segment.name).write_bytes(segment.read_bytes())
        left = select_tiles(planned, Ledger.open(str(part)).last(), now=0.0).tiles
        assert left == WINDOWS[count:], "completed tiles are not mapped again"
        write_ledger(str(part), [make_event(window, attempt=1, checksum=f"{WINDOWS.index(window)}") for window in left])
        found = {window: state.checksum for window, state in Ledger.open(str(part)).last().items()}
        assert found == {window: state.checksum for window, state in Ledger.open(str(whole)).last().items()}


def test_backoff_doubles_with_each_failure_until_attempts_are_exhausted() -> None:
    ledger, planned = Ledger(memory_url()), {WINDOWS[0]: "now"}
    for attempt, wait in ((1, 10.0), (2, 20.0), (3, 40.0)):
        ledger.append([make_event(state="failed", attempt=attempt, finished=100.0)])
        asked: dict[str, Any] = {"max_attempts": 4, "backoff_seconds": 10.0}
        early = select_tiles(planned, ledger.last(), now=99.0 + wait, **asked)
        assert (early.tiles, early.backing_off, early.retry_at) == ([], WINDOWS[:1], 100.0 + wait)
        assert select_tiles(planned, ledger.last(), now=100.0 + wait, **asked).tiles == WINDOWS[:1]
    ledger.append([make_event(state="failed", attempt=4, finished=100.0)])
    assert select_tiles(planned, ledger.last(), now=1e9, **asked).exhausted == WINDOWS[:1]
    assert select_tiles({WINDOWS[0]: "new"}, ledger.last(), now=100.0, **asked).tiles == WINDOWS[:1], (
        "a new fingerprint resets the attempts"
    )
