"""The tiles that a command requests."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.maps.ledger import State


@dataclass(frozen=True)
class TileRequest:
    """Which tiles to map, and what may be replaced."""

    states: tuple[State, ...] = ("pending", "failed", "stale")
    tiles: tuple[str, ...] | None = None  #: tile keys; None for all
    max_attempts: int | None = None  #: failed attempts after which a tile is skipped; None for no limit
    backoff: float = 0.0  #: seconds from a tile's first failure to its next attempt; doubled after each failure
    restart: bool = False  #: map all tiles, including those that are done
    replace: bool = False  #: also replace tiles mapped by another model
