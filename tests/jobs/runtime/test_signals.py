"""SIGTERM ends a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import typer

from jobs.cli.common import exit_on_error
from jobs.runtime.signals import sigterm_interrupts


@pytest.fixture(params=["default", "ignored"])
def sigint(request: pytest.FixtureRequest) -> Iterator[None]:
    """SIGINT with Python's handler, or ignored as in the background jobs of a shell script."""
    handlers = {"default": signal.default_int_handler, "ignored": signal.SIG_IGN}
    before = signal.signal(signal.SIGINT, handlers[request.param])
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
def test_sigterm_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as ended, exit_on_error():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "mibf: interrupted; run the same command again to resume.\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("sigint")
def test_failure_while_cleaning_up_after_sigterm_exits_with_130_too() -> None:
    """A signal to the whole process group has ended Ray's processes as well, so calls to them fail."""

    def call() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise RuntimeError("failed to connect to all addresses")

    with pytest.raises(typer.Exit) as ended, exit_on_error():
        call()
    assert ended.value.exit_code == 130


def test_sigterm_does_not_call_the_handler_that_a_library_set_for_sigint() -> None:
    received: list[int] = []

    def call() -> None:
        signal.signal(signal.SIGINT, lambda number, frame: received.append(number))  # as Ray Train does
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
            call()
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == []
