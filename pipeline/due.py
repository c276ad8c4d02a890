"""Which tiles are to be mapped now, from the ledger's last events and today's fingerprints alone. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.grid import Window
from pipeline.ledger import State, TileState


@dataclass(frozen=True)
class Due:
    """Tiles of the states that were asked for, each list in the order of the plan."""

    tiles: list[Window]  #: to be mapped now
    dead: list[Window]  #: failed, and tried as often as they may be
    waiting: list[Window]  #: failed too short a time ago
    until: float | None  #: when the first of those that wait may be tried again, in seconds since 1970 UTC


def classify(planned: Mapping[Window, str], last: Mapping[Window, TileState]) -> dict[Window, State]:
    """The state of every planned tile, given its current fingerprint and what the ledger says of it.

    pending: never finished, or asked for anew; done: under the current fingerprint; failed: at the last attempt under the
    current fingerprint; stale: done or failed under another one, or said to be stale.
    """
    return {window: _state(fingerprint, last.get(window)) for window, fingerprint in planned.items()}


def _state(fingerprint: str, found: TileState | None) -> State:
    if found is None:
        return "pending"
    if found.state in ("done", "failed") and found.fingerprint != fingerprint:
        return "stale"
    return found.state


def due(
    planned: Mapping[Window, str],
    last: Mapping[Window, TileState],
    *,
    states: Collection[State] = ("pending", "failed", "stale"),
    only: Collection[Window] | None = None,
    max_attempts: int | None = None,
    backoff_seconds: float = 0.0,
    now: float,
) -> Due:
    """The planned tiles to be mapped now. Done tiles never are, whatever is asked for.

    Args:
        planned: the current fingerprint of each tile.
        last: what the ledger says of tiles.
        states: of the tiles that are asked for.
        only: the tiles that are asked for; None for all.
        max_attempts: failed attempts under one fingerprint after which a tile is dead; None for no end.
        backoff_seconds: from a tile's first failed attempt to the next one; twice as many after each further failure.
        now: seconds since 1970 UTC.
    """
    wanted = None if only is None else frozenset(only)
    tiles, dead, waiting = [], [], {}
    for window, state in classify(planned, last).items():
        if state == "done" or state not in states or (wanted is not None and window not in wanted):
            continue
        if state == "failed":
            tried = last[window]
            until = _tried_again(tried, backoff_seconds)
            if max_attempts is not None and tried.failed_attempts >= max_attempts:
                dead.append(window)
            elif until > now:
                waiting[window] = until
            else:
                tiles.append(window)
        else:
            tiles.append(window)
    return Due(tiles, dead, list(waiting), min(waiting.values(), default=None))


def _tried_again(failed: TileState, backoff_seconds: float) -> float:
    """When a failed tile may be tried again, in seconds since 1970 UTC; at once where it is not known when it failed."""
    if failed.finished is None or not backoff_seconds:  # without a wait, a worker's clock that is ahead makes none
        return 0.0
    doublings = min(failed.failed_attempts - 1, 30)  # more would be centuries, and at last no number
    return failed.finished + backoff_seconds * 2.0**doublings
