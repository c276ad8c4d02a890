"""Waiting for an object store that is away: how long, for what, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import pytest

from mibf.errors import InputError
from pipeline import patience
from pipeline.patience import LONGEST_WAIT, PATIENCE, AwayError, patiently

URL = "s3://bucket/work?endpoint=secret"


class Clock:
    """A clock that goes on only when somebody waits; the store is away until a time."""

    def __init__(self, back: float = float("inf"), failure: Exception | None = None) -> None:
        self.now, self.back, self.tries = 0.0, back, 0
        self.failure = failure or ConnectionError("nobody at https://user:word@host:1/x?signature=1")

    def pause(self, seconds: float) -> None:
        assert seconds <= LONGEST_WAIT
        self.now += seconds

    def work(self) -> str:
        self.tries += 1
        if self.now < self.back:
            raise self.failure
        return "done"


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Clock], Clock]:
    def set_up(clock: Clock) -> Clock:
        monkeypatch.setattr(patience.time, "monotonic", lambda: clock.now)
        return clock

    return set_up


def test_a_store_that_comes_back_is_waited_for_and_told_of_once(clocked: Callable[[Clock], Clock]) -> None:
    clock, told = clocked(Clock(back=100)), []
    assert patiently(URL, clock.work, tell=told.append, pause=clock.pause) == "done"
    assert 100 <= clock.now < 100 + LONGEST_WAIT
    (line,) = told
    assert line.startswith("s3://bucket/work: does not answer (ConnectionError: nobody at https://host:1/x); trying again")


def test_a_store_that_does_not_come_back_ends_it_within_the_patience(clocked: Callable[[Clock], Clock]) -> None:
    clock = clocked(Clock())
    with pytest.raises(AwayError, match=r"s3://bucket/work: has not answered for 600 s .* run the same command again"):
        patiently(URL, clock.work, pause=clock.pause)
    assert PATIENCE - LONGEST_WAIT <= clock.now <= PATIENCE
    assert clock.tries < 30, "it is left in peace between"


def test_patience_may_be_shorter(clocked: Callable[[Clock], Clock]) -> None:
    clock = clocked(Clock())
    with pytest.raises(AwayError, match="for 5 s"):
        patiently(URL, clock.work, pause=clock.pause, patience=5)
    assert clock.now <= 5


@pytest.mark.parametrize("failure", [FileNotFoundError("x"), PermissionError("x"), InputError("x"), TypeError("x")])
def test_what_waiting_does_not_mend_is_raised_at_once(clocked: Callable[[Clock], Clock], failure: Exception) -> None:
    clock = clocked(Clock(failure=failure))
    with pytest.raises(type(failure)):
        patiently(URL, clock.work, pause=clock.pause)
    assert clock.tries == 1


def test_a_disk_is_not_waited_for(clocked: Callable[[Clock], Clock]) -> None:
    clock = clocked(Clock(failure=OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        patiently("/work", clock.work, pause=clock.pause)
    assert clock.tries == 1


def test_who_wants_no_result_any_more_does_not_wait(clocked: Callable[[Clock], Clock]) -> None:
    clock, stop = clocked(Clock()), Event()
    stop.set()
    with pytest.raises(AwayError, match="not waited for any longer"):
        patiently(URL, clock.work, pause=stop.wait)
    assert clock.tries == 1
