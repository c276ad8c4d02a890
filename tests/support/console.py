"""The console and the clock of progress bars in tests."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jobs.runtime import progress


class Terminal(io.StringIO):
    """A text stream that says whether it is a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def captured(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, width: int = 120) -> io.StringIO:
    """Return what progress bars write from now on, to a terminal or not."""
    text = Terminal(terminal)
    made = Console(file=text, force_terminal=terminal, width=width, _environ={"TERM": "xterm"})
    monkeypatch.setattr(progress, "console", made)
    return text


class Clock:
    """A clock that stands still until `now` is changed, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now
