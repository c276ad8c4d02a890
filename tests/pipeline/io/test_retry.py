"""Retries of object-store calls: how long, for which errors, and what is reported."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import pytest

from mibf.errors import InputError
from pipeline.io import retry
from pipeline.io.retry import LONGEST_WAIT, RETRY_SECONDS, StorageUnavailableError, call_with_retry

URL = "s3://bucket/work?endpoint=secret"


class Clock:
    """A clock that advances only during waits, and a store that fails until the time `back`."""

    def __init__(self, back: float = float("inf"), failure: Exception | None = None) -> None:
        self.now, self.back, self.tries = 0.0, back, 0
        self.failure = failure or ConnectionError("no response from https://user:word@host:1/x?signature=1")

    def pause(self, seconds: float) -> None:
        assert seconds <= LONGEST_WAIT
        self.now += seconds

    def work(self) -> str:
        self.tries += 1
        if self.now < self.back:
            raise self.failure
        return "done"


@pytest.fixture
def with_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Clock], Clock]:
    def set_up(clock: Clock) -> Clock:
        monkeypatch.setattr(retry.time, "monotonic", lambda: clock.now)
        return clock

    return set_up


def test_recovered_store_is_retried_and_reported_once(with_clock: Callable[[Clock], Clock]) -> None:
    clock, messages = with_clock(Clock(back=100)), []
    assert call_with_retry(URL, clock.work, report=messages.append, pause=clock.pause) == "done"
    assert 100 <= clock.now < 100 + LONGEST_WAIT
    (line,) = messages
    assert line.startswith(
        "s3://bucket/work: does not respond (ConnectionError: no response from https://host:1/x); retrying"
    )


def test_unavailable_store_raises_within_the_retry_limit(with_clock: Callable[[Clock], Clock]) -> None:
    clock = with_clock(Clock())
    with pytest.raises(
        StorageUnavailableError, match=r"s3://bucket/work: has not responded for 600 s .* run the same command again"
    ):
        call_with_retry(URL, clock.work, pause=clock.pause)
    assert RETRY_SECONDS - LONGEST_WAIT <= clock.now <= RETRY_SECONDS
    assert clock.tries < 30, "there are pauses between the tries"


def test_retry_limit_can_be_shortened(with_clock: Callable[[Clock], Clock]) -> None:
    clock = with_clock(Clock())
    with pytest.raises(StorageUnavailableError, match="for 5 s"):
        call_with_retry(URL, clock.work, pause=clock.pause, timeout=5)
    assert clock.now <= 5


@pytest.mark.parametrize("failure", [FileNotFoundError("x"), PermissionError("x"), InputError("x"), TypeError("x")])
def test_permanent_errors_are_raised_without_retry(with_clock: Callable[[Clock], Clock], failure: Exception) -> None:
    clock = with_clock(Clock(failure=failure))
    with pytest.raises(type(failure)):
        call_with_retry(URL, clock.work, pause=clock.pause)
    assert clock.tries == 1


def test_local_paths_are_never_retried(with_clock: Callable[[Clock], Clock]) -> None:
    clock = with_clock(Clock(failure=OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        call_with_retry("/work", clock.work, pause=clock.pause)
    assert clock.tries == 1


def test_cancelled_call_is_not_retried(with_clock: Callable[[Clock], Clock]) -> None:
    clock, stop = with_clock(Clock()), Event()
    stop.set()
    with pytest.raises(StorageUnavailableError, match="retries were cancelled"):
        call_with_retry(URL, clock.work, pause=stop.wait)
    assert clock.tries == 1
