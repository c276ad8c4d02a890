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


def test_sigterm_calls_the_handler_that_a_library_set_for_sigint() -> None:
    received: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with sigterm_interrupts():
        signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]
