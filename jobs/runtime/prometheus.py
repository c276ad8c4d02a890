"""Metrics for dashboards and alerts: counters, gauges and histograms, exported to Prometheus by Ray's nodes.

Ray prefixes each name with `ray_` and appends `_total` to counters. Only drivers count, so a task that Ray repeats is
counted once. Commands that run without Ray export no metrics.
"""

from __future__ import annotations

import math
from typing import Protocol

from jobs.config.config import Config
from pipeline.maps.outcome import TileOutcome

#: Upper bounds of the histogram buckets, in seconds.
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class MapMetrics(Protocol):
    """Metrics reported by the driver of a map."""

    def tile(self, done: TileOutcome, attempt: int) -> None:
        """Record a tile that is done or failed on attempt number `attempt`."""


class TrainMetrics(Protocol):
    """Metrics reported by the driver of a training."""

    def seen(self, samples: int, waiting: float) -> None:
        """Record the total samples seen so far and the share of time spent waiting for data."""

    def loss(self, value: float) -> None:
        """Record the recent training loss."""


def map_metrics(config: Config) -> MapMetrics:
    """Return the metrics of a map; they are exported only if the map uses Ray."""
    return RayMapMetrics(config.run) if config.map.workers else NullMetrics()


def train_metrics(config: Config) -> TrainMetrics:
    """Return the metrics of a training; they are exported only if the training uses Ray."""
    return RayTrainMetrics(config.run) if config.train.workers else NullMetrics()


class NullMetrics:
    """Exports nothing."""

    def tile(self, done: TileOutcome, attempt: int) -> None:
        """Do nothing."""

    def seen(self, samples: int, waiting: float) -> None:
        """Do nothing."""

    def loss(self, value: float) -> None:
        """Do nothing."""


class RayMapMetrics:
    """Metrics of a map, exported by Ray to Prometheus."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Histogram

        self._run = run
        keys = ("run", "scene")
        self._tiles = Counter("mibf_tiles", "Tile attempts by outcome", ("run", "scene", "state"))
        self._retries = Counter("mibf_tile_retries", "Tile attempts after the first", keys)
        self._pixels = Counter("mibf_pixels", "Reference grid pixels mapped", keys)
        self._seconds = {
            step: Histogram(f"mibf_tile_{step}_seconds", f"Seconds per tile to {step}", list(SECONDS), keys)
            for step in ("read", "compute", "write")
        }

    def tile(self, done: TileOutcome, attempt: int) -> None:
        """See `MapMetrics.tile`."""
        subject = {"run": self._run, "scene": done.tile.scene}
        self._tiles.inc(1, subject | {"state": "failed" if done.cause else "done"})
        if attempt > 1:
            self._retries.inc(1, subject)
        if done.cause:
            return
        if done.pixels:  # Ray rejects an increment of 0
            self._pixels.inc(done.pixels, subject)
        for step, histogram in self._seconds.items():
            histogram.observe(getattr(done, f"{step}_seconds"), subject)


class RayTrainMetrics:
    """Metrics of a training, exported by Ray to Prometheus."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._tags = {"run": run}
        self._samples = Counter("mibf_samples", "Training samples processed", ("run",))
        self._loss = Gauge("mibf_loss", "Recent training loss", ("run",))
        self._waiting = Gauge("mibf_data_wait_share", "Share of time that training waits for data, 0 to 1", ("run",))
        self._counted: int | None = None

    def seen(self, samples: int, waiting: float) -> None:
        """See `TrainMetrics.seen`."""
        # Samples seen before a resume are not counted. If training restarts a little earlier, only new samples count.
        before = samples if self._counted is None else self._counted
        if samples > before:
            self._samples.inc(samples - before, self._tags)
        self._counted = max(samples, before)
        self._waiting.set(waiting, self._tags)

    def loss(self, value: float) -> None:
        """See `TrainMetrics.loss`."""
        self._loss.set(value if math.isfinite(value) else math.nan, self._tags)
