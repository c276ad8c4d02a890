"""The Ray actor that passes progress from workers to the driver.

Its process imports this module and no more: torch and Ray Train would take it seconds of a core that the workers need.
"""

from __future__ import annotations

import ray


@ray.remote(num_cpus=0)
class ProgressActor:
    """Progress actor: collects the workers' progress, lines for a person and fatal errors for the driver."""

    def __init__(self) -> None:
        self._seen: tuple[int, float] = (0, 0.0)
        self._loss: float | None = None
        self._lines: list[tuple[str, str]] = []
        self._fatal_error: tuple[str, str] | None = None
        self._gathered = 0

    def gathered(self, workers: int) -> None:
        """Count a start of the worker group; warn if it is a restart."""
        self._gathered += 1
        if self._gathered > 1:
            self.report(
                "warn",
                "workers died, or more became available: training resumes from the newest checkpoint with "
                f"{workers} worker{'s' if workers > 1 else ''}",
            )

    def seen(self, samples: int, waiting: float) -> None:
        """Keep the samples processed so far, and the share of the time spent waiting for data."""
        self._seen = samples, waiting

    def loss(self, value: float) -> None:
        """Keep the training loss of the epoch so far."""
        self._loss = value

    def report(self, kind: str, line: str) -> None:
        """Queue a line for the driver; `kind` is "epoch" or "warn"."""
        if (kind, line) not in self._lines:  # all workers may send the same warning
            self._lines.append((kind, line))

    def give_up(self, kind: str, line: str) -> None:
        """Keep the first fatal error; `kind` is "input", "lease" or "stage"."""
        if self._fatal_error is None:
            self._fatal_error = kind, line

    def fatal_error(self) -> tuple[str, str] | None:
        """The kind and message of the fatal error, if there was one."""
        return self._fatal_error

    def read(self) -> tuple[tuple[int, float], float | None, list[tuple[str, str]]]:
        """The progress so far, and the loss and the lines since the last call."""
        lines, self._lines = self._lines, []
        loss, self._loss = self._loss, None
        return self._seen, loss, lines
