"""Results of commands, printed as text or as JSON. Minimal dependencies in this module."""

from __future__ import annotations

from typing import Any, Protocol


class Result(Protocol):
    """The result of a command."""

    def lines(self) -> list[str]:
        """Format the result as lines of text; empty if nothing is to be printed."""
        ...

    def to_json(self) -> Any:
        """Convert the result to JSON values."""
        ...
