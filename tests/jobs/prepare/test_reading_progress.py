"""Progress of reads: lines without a terminal, a bar on one; what an interrupted run left does not count for the rate."""

from __future__ import annotations

import io
import json

import pytest

from jobs.prepare.reading_progress import ReadingBar, reading_bar
from pipeline.store.reading import Reading
from tests.support.console import Clock, captured

GB = 10**9
TOTAL = Reading(64, 1240, 16 * GB)


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    return captured(monkeypatch, terminal=False)


def test_a_line_is_printed_every_half_minute(text: io.StringIO) -> None:
    clock = Clock()
    bar = ReadingBar(None, "valley: write store", TOTAL, workers=2, clock=clock)
    bar.advance(Reading())
    for _ in range(8):
        clock.now += 10
        bar.advance(Reading(1, 20, GB // 4))
    assert text.getvalue().splitlines() == [
        "valley: write store: 3 of 64 shards, 0.8 of 16.0 GB in 60 of 1,240 reads of items, about 10 min left",
        "valley: write store: 6 of 64 shards, 1.5 of 16.0 GB in 120 of 1,240 reads of items, about 10 min left",
    ]


def test_time_left_is_that_of_this_process_for_what_is_missing() -> None:
    clock = Clock()
    bar = ReadingBar(None, "", TOTAL, workers=1, clock=clock)
    bar.advance(Reading(32, 600, 12 * GB))
    clock.now += 20
    assert bar.seconds_left() is None, "nothing was read yet"
    bar.advance(Reading(1, 20, GB))
    assert bar.seconds_left() == pytest.approx(60), "3 GB are left, at 1 GB in 20 s"
    clock.now += 10
    bar.advance(Reading(10))
    assert bar.seconds_left() == pytest.approx(90), "shards outside the area read nothing"
    bar.advance(Reading(21, 620, 3 * GB))
    assert bar.seconds_left() is None, "nothing is left"


def test_no_time_is_estimated_before_every_worker_can_have_completed_a_shard() -> None:
    clock = Clock()
    bar = ReadingBar(None, "", TOTAL, workers=4, clock=clock)
    bar.advance(Reading())
    clock.now += 30
    bar.advance(Reading(3, 3, GB))
    assert bar.seconds_left() is None
    bar.advance(Reading(1, 1, GB))
    assert bar.seconds_left() == pytest.approx(30 * 14 / 2)


def test_what_an_interrupted_run_left_is_reported(text: io.StringIO) -> None:
    with reading_bar("valley: write store", TOTAL, workers=1) as bar:
        bar.advance(Reading(12, 240, 3 * GB))
    assert text.getvalue().splitlines() == [
        "valley: write store (64 shards, 16.0 GB of pixels in 1,240 reads of items) ...",
        "valley: write store: 12 shards of 64 are there already",
    ]


def test_lines_in_json_have_numbers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIBF_LOG", "json")
    clock = Clock()
    bar = ReadingBar(None, "valley: write store", TOTAL, workers=1, clock=clock)
    bar.advance(Reading(2, 40, GB))
    clock.now += 60
    bar.advance(Reading(2, 40, GB))
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert {key: line[key] for key in ("shards_done", "shards_total", "items_done", "items_total")} == {
        "shards_done": 4,
        "shards_total": 64,
        "items_done": 80,
        "items_total": 1240,
    }
    assert (line["bytes_done"], line["bytes_total"], line["seconds_left"]) == (2 * GB, 16 * GB, 14 * 60)


def test_terminal_has_a_bar_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = captured(monkeypatch, terminal=True)
    with reading_bar("valley: write store", Reading(4, 8, 40 * 10**6), workers=1) as bar:
        bar.advance(Reading(1, 2, 10**7))
        bar.advance(Reading(1, 2, 10**7))
    shown = text.getvalue()
    assert "2/4" in shown
    assert "2 of 4 shards, 20.0 of 40.0 MB in 4 of 8 reads of items, about" in shown
