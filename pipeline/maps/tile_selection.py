"""Select the tiles to map from the ledger's last events and the current fingerprints. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.grid import Window
from pipeline.maps.ledger import State, TileState


@dataclass(frozen=True)
class TileSelection:
    """Tiles of the requested states; each list is in the order of the plan."""

    tiles: list[Window]  #: to map now
    exhausted: list[Window]  #: failed, with no attempts left
    backing_off: list[Window]  #: failed, with the retry delay not yet over
    retry_at: float | None  #: earliest retry time of those backing off, in seconds since 1970 UTC


def classify(planned: Mapping[Window, str], last: Mapping[Window, TileState]) -> dict[Window, State]:
    """Return the state of every planned tile, from its current fingerprint and its last event in the ledger.

    pending: never finished, or requested again; done: mapped under the current fingerprint; failed: the last attempt under
    the current fingerprint failed; stale: done or failed under another fingerprint, or marked stale.
    """
    return {window: _state(fingerprint, last.get(window)) for window, fingerprint in planned.items()}


def _state(fingerprint: str, found: TileState | None) -> State:
    if found is None:
        return "pending"
    if found.state in ("done", "failed") and found.fingerprint != fingerprint:
        return "stale"
    return found.state


def select_tiles(
    planned: Mapping[Window, str],
    last: Mapping[Window, TileState],
    *,
    states: Collection[State] = ("pending", "failed", "stale"),
    only: Collection[Window] | None = None,
    max_attempts: int | None = None,
    backoff_seconds: float = 0.0,
    now: float,
) -> TileSelection:
    """Select the planned tiles to map now. Tiles that are done are never selected, whatever is requested.

    Args:
        planned: the current fingerprint of each tile.
        last: the current state of each tile in the ledger.
        states: requested states.
        only: requested tiles; None for all.
        max_attempts: failed attempts under one fingerprint after which a tile is no longer retried; None for no limit.
        backoff_seconds: delay after a tile's first failed attempt; doubled after each further failure.
        now: seconds since 1970 UTC.
    """
    wanted = None if only is None else frozenset(only)
    tiles, exhausted, backing_off = [], [], {}
    for window, state in classify(planned, last).items():
        if state == "done" or state not in states or (wanted is not None and window not in wanted):
            continue
        if state == "failed":
            last_state = last[window]
            retry_at = _retry_time(last_state, backoff_seconds)
            if max_attempts is not None and last_state.failed_attempts >= max_attempts:
                exhausted.append(window)
            elif retry_at > now:
                backing_off[window] = retry_at
            else:
                tiles.append(window)
        else:
            tiles.append(window)
    return TileSelection(tiles, exhausted, list(backing_off), min(backing_off.values(), default=None))


def _retry_time(failed: TileState, backoff_seconds: float) -> float:
    """When a failed tile may be retried, in seconds since 1970 UTC; immediately if the time of failure is unknown."""
    if failed.finished is None or not backoff_seconds:  # without a delay, a worker's fast clock must not cause one
        return 0.0
    doublings = min(failed.failed_attempts - 1, 30)  # more would be centuries, and would finally overflow
    return failed.finished + backoff_seconds * 2.0**doublings
