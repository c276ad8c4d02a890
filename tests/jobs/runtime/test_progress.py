"""Training progress bar: one plain line per epoch without a terminal, throughput below it on a terminal; library texts."""

from __future__ import annotations

import io
import json
import logging
import warnings

import pytest
from rich.console import Console

from jobs.runtime import progress
from jobs.runtime.progress import TrainingBar, library_messages, training_bar
from tests.support.console import Clock, captured


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    return captured(monkeypatch, terminal=False)


def test_epoch_without_terminal_prints_one_line(plain: io.StringIO) -> None:
    clock = Clock()
    bar = TrainingBar(None, 1_000_000, clock=clock)
    bar.seen(0, waiting=0.0)
    clock.now += 10
    bar.seen(412_000, waiting=0.004)
    bar.epoch("epoch 3 of 10: validation overall accuracy 0.781")
    assert plain.getvalue() == (
        "epoch 3 of 10: validation overall accuracy 0.781, 41,200 samples/s, waiting 0.4 %, about 14 s left\n"
    )


def test_throughput_after_resume_counts_only_this_process(plain: io.StringIO) -> None:
    clock = Clock()
    bar = TrainingBar(None, 2000, clock=clock)
    bar.seen(1000, waiting=0.0)
    bar.epoch("epoch 1 of 2: nothing seen yet")
    clock.now += 5
    bar.seen(1500, waiting=0.5)
    assert bar.pace() == "100 samples/s, waiting 50.0 %, about 5 s left"
    clock.now += 5
    bar.seen(2000, waiting=0.5)
    assert bar.pace() == "100 samples/s, waiting 50.0 %"
    assert plain.getvalue() == "epoch 1 of 2: nothing seen yet\n"


@pytest.mark.parametrize(("left", "words"), [(89, "89 s"), (150, "2 min"), (5000, "83 min"), (9000, "2.5 h")])
def test_time_left_is_rounded_and_has_a_unit(left: int, words: str) -> None:
    clock = Clock()
    bar = TrainingBar(None, left + 1, clock=clock)
    bar.seen(0, waiting=0.0)
    clock.now += 1
    bar.seen(1, waiting=0.0)
    assert bar.pace().endswith(f", about {words} left")


def test_bar_without_terminal_prints_only_the_start_line(plain: io.StringIO) -> None:
    with training_bar("train", 5000) as bar:
        bar.seen(10, waiting=0.0)
        bar.seen(5000, waiting=0.0)
    assert plain.getvalue() == "train (5,000 samples) ...\n"


def test_forced_color_draws_no_bar_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=text, _environ={"FORCE_COLOR": "1"}))  # as in a notebook
    with training_bar("train", 5000) as bar:
        bar.seen(5000, waiting=0.0)
    assert text.getvalue() == "train (5,000 samples) ...\n"


def test_bar_on_terminal_shows_throughput_and_epoch_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = captured(monkeypatch, terminal=True)
    with training_bar("train", 5000) as bar:
        bar.seen(0, waiting=0.0)
        bar.seen(2500, waiting=0.02)
        bar.epoch("epoch 1 of 2: validation [overall] accuracy 0.781")
        progress.warn("in between")
    shown = text.getvalue()
    assert "2,500 of 5,000 samples" in shown
    assert "samples/s, waiting 2.0 %, about" in shown
    assert "epoch 1 of 2: validation [overall] accuracy 0.781" in shown
    assert "warning: in between" in shown
    assert progress.take_warnings()[-1:] == ["in between"]


URL = "https://me:pass'word@127.0.0.1:9/labels.gpkg?X-Signature=secret"


def say_as_libraries_do() -> None:
    warnings.simplefilter("always")  # otherwise each is shown once
    warnings.warn(f"File /vsicurl/{URL} has a non conformant extension", RuntimeWarning, stacklevel=1)
    logger = logging.Logger("library.without.handlers")  # not below the root, which has pytest's handlers
    logger.warning("cannot read %s", URL)
    logger.info("reading %s", URL)


def test_messages_of_libraries_are_lines_without_credentials(plain: io.StringIO) -> None:
    with library_messages():
        say_as_libraries_do()
    first, second = plain.getvalue().splitlines()
    assert first.startswith(
        "warning: File /vsicurl/https://127.0.0.1:9/labels.gpkg has a non conformant extension (RuntimeWa"
    )
    assert "runtime/test_progress.py:" in first
    assert second == "warning: library.without.handlers: cannot read https://127.0.0.1:9/labels.gpkg"


def test_records_of_libraries_keep_their_tracebacks(plain: io.StringIO) -> None:
    with library_messages():
        try:
            raise ValueError(URL)
        except ValueError:
            logging.Logger("library.without.handlers").exception("a task failed")
    text = plain.getvalue()
    assert text.startswith("warning: library.without.handlers: a task failed\nTraceback (most recent call last):\n")
    assert "ValueError: https://127.0.0.1:9/labels.gpkg" in text
    assert "secret" not in text


def test_messages_of_libraries_are_json_in_a_json_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIBF_LOG", "json")
    with library_messages():
        say_as_libraries_do()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "warning"]
    assert all("secret" not in line["event"] and "pass" not in line["event"] for line in lines)


def test_messages_of_libraries_are_theirs_again_afterwards() -> None:
    before = warnings.showwarning, logging.lastResort
    with pytest.raises(KeyError), library_messages():
        raise KeyError
    assert (warnings.showwarning, logging.lastResort) == before
