"""Measure the throughput of training."""

from __future__ import annotations

import time


class Clock:
    """Measures the throughput of an epoch and the share of its time spent waiting for data."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start timing an epoch."""
        self.started = self.reported = self.now = time.monotonic()
        self.samples, self.waited = 0, 0.0

    def add(self, samples: int, waited: float) -> None:
        """Add a step."""
        self.now = time.monotonic()
        self.samples += samples
        self.waited += waited

    def is_due(self) -> bool:
        """Whether at least one second has passed since this last returned True."""
        if self.now - self.reported < 1:
            return False
        self.reported = self.now
        return True

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / max(self.now - self.started, 1e-9)

    @property
    def waiting(self) -> float:
        """The share of the time spent waiting for batches."""
        return self.waited / max(self.now - self.started, 1e-9)
