"""The map ledger: tile states after any history, flushing, crash safety, damage, single writer and other readers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.errors import InputError
from pipeline.grid import Tile, Window
from pipeline.io import retry, storage
from pipeline.io.lease import Lease, LeaseLostError
from pipeline.io.retry import StorageUnavailableError
from pipeline.maps import ledger as module
from pipeline.maps.ledger import Ledger, LedgerEvent, LedgerTakenError, State, TileVersion
from tests.support.ledgers import STATES, WINDOWS, histories, make_event, memory_url, write_ledger
from tests.support.paths import ROOT
from tests.support.s3_server import ObjectStore


@pytest.fixture(params=["disk", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "ledger") if request.param == "disk" else memory_url()


def from_row(row: dict[str, Any]) -> LedgerEvent:
    """Return the event of a table row."""
    window = Window(*(row.pop(name) for name in ("y", "x", "height", "width")))
    times = {name: value and value.timestamp() for name, value in row.items() if name in ("started", "finished")}
    return LedgerEvent(tile=Tile(row.pop("scene"), window), **row | times)


# State of a tile


@settings(max_examples=50)
@given(st.lists(histories, max_size=4))
def test_ledger_reads_back_the_appended_events(segments: list[list[LedgerEvent]]) -> None:
    url = memory_url()
    for segment in segments:
        written = write_ledger(url, segment)
    history = [event for segment in segments for event in segment]
    opened = Ledger.open(url)
    assert [from_row(row) for row in opened.table().to_pylist()] == history
    assert len(storage.names(url)) == sum(map(bool, segments)), "no segment is written without events"
    if segments:
        assert written.last() == opened.last(), "the writer's state equals the state read from the files"
    for window, found in opened.last().items():
        event = next(event for event in reversed(history) if event.tile.window == window)
        for name in ("state", "fingerprint", "model", "cause", "finished", "checksum", "pixels", "rows"):
            assert getattr(found, name) == getattr(event, name)
    assert set(opened.last()) == {event.tile.window for event in history}
    made = {window: [e for e in history if e.tile.window == window and e.state == "done"] for window in opened.last()}
    for ledger in (opened, written) if segments else (opened,):
        assert ledger.versions() == {
            window: [TileVersion(e.fingerprint, e.checksum, e.worker, e.rows) for e in events]
            for window, events in made.items()
            if events
        }


#: History of one tile as the driver records it: fingerprint and state of each event, attempts and others.
lives = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(STATES)), max_size=8)


def numbered_events(window: Window, life: Sequence[tuple[str, State]]) -> list[LedgerEvent]:
    """Return the events of a tile with numbered attempts."""
    events: list[LedgerEvent] = []
    attempt, before = 0, ""
    for fingerprint, state in life:
        attempt = attempt if fingerprint == before else 0
        attempt, before = attempt + (state in ("done", "failed")), fingerprint
        events.append(make_event(window, state, fingerprint, attempt=attempt, finished=float(len(events))))
    return events


@given(lives)
def test_attempts_count_only_the_current_fingerprint(life: list[tuple[str, State]]) -> None:
    last = Ledger(memory_url())
    last.append(numbered_events(WINDOWS[0], life))
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
def test_repeated_events_and_order_between_tiles_have_no_effect(
    all_lives: list[list[tuple[str, State]]], data: st.DataObject
) -> None:
    once = {window: numbered_events(window, life) for window, life in zip(WINDOWS, all_lives, strict=False)}
    plain, shuffled = Ledger(memory_url()), Ledger(memory_url())
    for events in once.values():
        plain.append(events)
    left = {window: [e for e in events for _ in range(data.draw(st.integers(1, 3)))] for window, events in once.items()}
    while any(left.values()):
        window = data.draw(st.sampled_from([window for window, events in left.items() if events]))
        shuffled.append([left[window].pop(0)])
    assert shuffled.last() == plain.last()


def test_unnumbered_attempts_are_all_counted() -> None:
    ledger = Ledger(memory_url())
    ledger.append(
        [make_event(state="failed"), make_event(state="failed"), make_event(state="stale"), make_event(state="done")]
    )
    assert (ledger.last()[WINDOWS[0]].attempts, ledger.last()[WINDOWS[0]].failed_attempts) == (3, 2)


def test_event_of_another_scene_is_refused(url: str) -> None:
    ledger = write_ledger(url, [make_event()])
    with pytest.raises(ValueError, match="ledger of scene scene, event of scene other"):
        ledger.append([replace(make_event(), tile=Tile("other", WINDOWS[0]))])


def test_cause_is_redacted_and_accepts_invalid_unicode() -> None:
    failed = make_event(state="failed", cause="https://user:word@host/x.tif?signature=1: not found: \udcff.tif")
    url = memory_url()
    write_ledger(url, [failed])
    assert Ledger.open(url).last()[WINDOWS[0]].cause == failed.cause == "https://host/x.tif: not found: ?.tif"


# Flushing


def test_events_are_flushed_by_count_and_by_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_ROWS", 10)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 3600.0)
    monkeypatch.setattr(module, "FLUSH_SECONDS_FAR", 3600.0)
    ledger = Ledger.open(url)
    ledger.append(make_event(finished=float(i)) for i in range(25))
    assert sorted(storage.names(url)) == ["000001.parquet", "000002.parquet"]
    assert len(ledger.table()) == 25
    assert ledger.last()[WINDOWS[0]].finished == 24.0, "events are visible before they are flushed"
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(module, "FLUSH_SECONDS_FAR", 0.0)
    ledger.append([])
    assert Ledger.open(url).table() == ledger.table()
    assert len(storage.names(url)) == 3


def append_then_raise_or_flush(ledger: Ledger, event: LedgerEvent, raised: BaseException | None = None) -> None:
    """Append an event, then raise the given exception or flush."""
    with ledger.writing():
        ledger.append([event])
        if raised is not None:
            raise raised
        ledger.flush()


def test_exception_does_not_lose_appended_events(url: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        append_then_raise_or_flush(Ledger.open(url), make_event(), KeyboardInterrupt())
    assert len(Ledger.open(url).last()) == 1


class LostLease(Lease):
    """A lease that another run has taken over."""

    def check(self) -> None:
        raise LeaseLostError("lost")


def test_ledger_of_a_run_that_lost_its_lease_is_not_written(url: str) -> None:
    ledger = Ledger.open(url)
    with pytest.raises(LeaseLostError), ledger.writing(LostLease()):
        ledger.append([make_event()])
    successor = write_ledger(url, [make_event(WINDOWS[1])])
    assert set(successor.last()) == set(Ledger.open(url).last()) == {WINDOWS[1]}, "its successor is not stopped"


def test_missing_folder_reads_as_empty_ledger_and_is_not_created(url: str) -> None:
    ledger = Ledger.open(url)
    assert not ledger.last()
    assert len(ledger.table()) == 0
    ledger.close()
    assert not storage.exists(url)


# Single writer


def test_concurrent_writer_raises_and_overwrites_nothing(url: str) -> None:
    write_ledger(url, [make_event()])
    first, second = Ledger.open(url), Ledger.open(url)
    second.append([make_event(WINDOWS[1])])
    second.flush()
    with pytest.raises(LedgerTakenError, match=r"000002\.parquet: another run is writing this ledger; wait for it"):
        append_then_raise_or_flush(first, make_event(WINDOWS[2]))
    assert set(Ledger.open(url).last()) == set(WINDOWS[:2])
    second.append([make_event(WINDOWS[3])])
    second.close()
    assert set(Ledger.open(url).last()) == {*WINDOWS[:2], WINDOWS[3]}


def test_write_with_lost_response_is_recognized_as_own(monkeypatch: pytest.MonkeyPatch) -> None:
    url, answers = memory_url(), iter([False, True])
    create = storage.create_bytes

    def lossy(url: str, content: bytes) -> bool:
        done = create(url, content)
        if not next(answers, True):
            raise ConnectionError("reset by peer")
        return done

    monkeypatch.setattr(storage, "create_bytes", lossy)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)
    ledger = Ledger.open(url)
    ledger.append([make_event()])
    ledger.flush()
    answers = iter([False])
    monkeypatch.setattr(retry, "RETRY_SECONDS", -1.0)
    ledger.append([make_event(WINDOWS[1])])
    with pytest.raises(StorageUnavailableError):
        ledger.flush()
    ledger.append([make_event(WINDOWS[2])])
    ledger.flush()
    assert Ledger.open(url).table()["x"].to_pylist() == [0, 8, 16]
    assert len(storage.names(url)) == 3


def test_closing_does_not_retry_after_store_was_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def away(*arguments: object) -> bool:
        tries.append(arguments)
        raise ConnectionError("no response")

    monkeypatch.setattr(storage, "create_bytes", away)
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.0)
    with pytest.raises(StorageUnavailableError):
        append_then_raise_or_flush(Ledger.open(memory_url()), make_event())
    assert len(tries) == 1


# Crashes and damage

WRITER = """
import sys
from pipeline.grid import Tile, Window
from pipeline.maps import ledger
ledger.FLUSH_ROWS = 7
written = ledger.Ledger.open(sys.argv[1])
for y in range(10**9):
    tile = Tile("scene", Window(y, 0, 1, 1))
    written.append([ledger.LedgerEvent(tile=tile, state="done", fingerprint="now", checksum=str(y))])
    if y % 7 == 6:
        print(y, flush=True)
"""


def test_ledger_is_intact_and_writable_after_writer_is_killed(tmp_path: Path) -> None:
    url, before = str(tmp_path / "ledger"), 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for lines in (1, 7):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True, env=environment)
        assert writer.stdout is not None
        for _ in range(lines):
            last_printed = int(writer.stdout.readline())
        time.sleep(0.003 * lines)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        found = Ledger.open(url)
        ys = found.table()["y"].to_pylist()[before:]
        assert ys == list(range(len(ys))), "flushed events are present, in order"
        assert len(ys) > last_printed
        assert len(pd.read_parquet(url)) == before + len(ys), "other readers find no partial files"
        before += len(ys)


def test_partial_segment_of_killed_writer_is_ignored(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger")
    write_ledger(url, [make_event()])
    program = f"import os\nos.link = lambda *_: os._exit(9)\n{WRITER}"
    done = subprocess.run([sys.executable, "-c", program, url], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 9
    assert len(storage.names(url)) == 2, "the killed writer leaves a partial file"
    assert len(Ledger.open(url).table()) == len(pd.read_parquet(url)) == 1
    write_ledger(url, [make_event(WINDOWS[1])])
    assert len(Ledger.open(url).last()) == len(pd.read_parquet(url)) == 2


@pytest.mark.parametrize("damage", ["truncated", "emptied", "another table"])
def test_damaged_segment_is_named_and_can_be_removed(damage: str, tmp_path: Path) -> None:
    url = str(tmp_path / "ledger")
    for window in WINDOWS[:3]:
        write_ledger(url, [make_event(window, checksum="c" * 64)])
    segment = tmp_path / "ledger" / "000002.parquet"
    if damage == "another table":
        pq.write_table(pa.table({"y": [1]}), segment)
    else:
        segment.write_bytes({"truncated": segment.read_bytes()[:-9], "emptied": b""}[damage])
    with pytest.raises(InputError, match=r"000002.parquet: is damaged .* remove it, and its tiles are mapped again"):
        Ledger.open(url).table()
    segment.unlink()
    assert set(Ledger.open(url).last()) == {WINDOWS[0], WINDOWS[2]}
    write_ledger(url, [make_event(WINDOWS[1])])
    assert set(Ledger.open(url).last()) == set(WINDOWS[:3])


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_flipped_bit_is_reported_or_has_no_effect(place: float, bit: int) -> None:
    url = memory_url()
    table = write_ledger(
        url, [make_event(window, checksum=f"{window.x:064d}", finished=1.5e9) for window in WINDOWS]
    ).table()
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
}  # fmt: skip  # pairs: one per line would fill a page


def check_with_pandas(url: str) -> None:
    write_ledger(url, [make_event(finished=1.5e9), make_event(WINDOWS[1], "failed", cause="why")])
    write_ledger(url, [make_event(WINDOWS[2])])
    frame = pd.read_parquet(url)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == DTYPES
    assert frame["x"].tolist() == [0, 8, 16]
    assert frame["finished"][0] == pd.Timestamp("2017-07-14T02:40:00Z")
    assert frame["finished"][1:].isna().all()
    assert frame[frame.state == "failed"]["cause"].tolist() == ["why"]


def test_pandas_reads_the_ledger(tmp_path: Path) -> None:
    check_with_pandas(str(tmp_path / "ledger"))


@pytest.mark.slow
def test_ledger_works_in_an_s3_bucket(used_bucket: ObjectStore) -> None:
    check_with_pandas(used_bucket.url("ledgers", "one"))
    test_concurrent_writer_raises_and_overwrites_nothing(used_bucket.url("ledgers", "other"))
