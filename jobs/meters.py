"""What dashboards and alerts go by: counters, gauges and histograms, which Ray's nodes offer to Prometheus.

Ray puts `ray_` before each name, and `_total` after that of a counter. Drivers alone count, each thing once however often
Ray does it. Where a command works without Ray nothing is counted.
"""

from __future__ import annotations

import math
from typing import Protocol

from jobs.config import Config
from pipeline.mapper import Done

#: Upper limits of the histograms' classes, in seconds.
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class MapMeters(Protocol):
    """What a map's driver tells of."""

    def tile(self, done: Done, attempt: int) -> None:
        """A tile is done or has failed, at its so many-th attempt."""


class TrainMeters(Protocol):
    """What a training's driver tells of."""

    def seen(self, samples: int, waiting: float) -> None:
        """All samples seen so far in all, and the share of the time that waited for data."""

    def loss(self, value: float) -> None:
        """The training loss of late."""


def map_meters(config: Config) -> MapMeters:
    """The meters of a map; Ray is at work where the map needs it."""
    return _OfMap(config.run) if config.map.workers else _Nowhere()


def train_meters(config: Config) -> TrainMeters:
    """The meters of a training; Ray is at work where the training needs it."""
    return _OfTraining(config.run) if config.train.workers else _Nowhere()


class _Nowhere:
    def tile(self, done: Done, attempt: int) -> None:
        """Nothing."""

    def seen(self, samples: int, waiting: float) -> None:
        """Nothing."""

    def loss(self, value: float) -> None:
        """Nothing."""


class _OfMap:
    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Histogram

        self._run = run
        keys = ("run", "scene")
        self._tiles = Counter("mibf_tiles", "Tiles that were tried, by how they went", ("run", "scene", "state"))
        self._retries = Counter("mibf_tile_retries", "Attempts at tiles after their first", keys)
        self._pixels = Counter("mibf_pixels", "Pixels of the reference grid that were mapped", keys)
        self._seconds = {
            step: Histogram(f"mibf_tile_{step}_seconds", f"Seconds that a tile took to {step}", list(SECONDS), keys)
            for step in ("read", "compute", "write")
        }

    def tile(self, done: Done, attempt: int) -> None:
        subject = {"run": self._run, "scene": done.tile.scene}
        self._tiles.inc(1, subject | {"state": "failed" if done.cause else "done"})
        if attempt > 1:
            self._retries.inc(1, subject)
        if done.cause:
            return
        if done.pixels:  # Ray refuses to count nothing
            self._pixels.inc(done.pixels, subject)
        for step, histogram in self._seconds.items():
            histogram.observe(getattr(done, f"{step}_seconds"), subject)


class _OfTraining:
    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._of = {"run": run}
        self._samples = Counter("mibf_samples", "Samples that training and validation have seen", ("run",))
        self._loss = Gauge("mibf_loss", "Training loss of late", ("run",))
        self._waiting = Gauge("mibf_data_wait_share", "Share of the time that training waits for data, 0 to 1", ("run",))
        self._told: int | None = None

    def seen(self, samples: int, waiting: float) -> None:
        # What was seen before a resumed training began is not counted; of one that goes back a little only what is new.
        before = samples if self._told is None else self._told
        if samples > before:
            self._samples.inc(samples - before, self._of)
        self._told = max(samples, before)
        self._waiting.set(waiting, self._of)

    def loss(self, value: float) -> None:
        self._loss.set(value if math.isfinite(value) else math.nan, self._of)
