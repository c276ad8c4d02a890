"""The checksums of the tiles that a published map consists of, from its scene's ledger."""

from __future__ import annotations

import pyarrow as pa

from pipeline.grid import Window
from pipeline.maps.ledger import Ledger

_COLUMNS = ("state", "y", "x", "height", "width", "checksum")


def event_count(ledger: Ledger) -> int:
    """Number of events of a ledger, written or buffered.

    Raises:
        InputError, StorageUnavailableError: as for `Ledger.table`.
    """
    return int(ledger.table(_COLUMNS[:1]).num_rows)


def tile_checksums(ledger: Ledger, events: int | None = None) -> dict[Window, str]:
    """The checksum of each tile's last successful result among the first `events` events; default: among all.

    Raises:
        InputError, StorageUnavailableError: as for `Ledger.table`.
    """
    return _done(ledger.table(_COLUMNS).slice(0, events))


def tiles_done_since(ledger: Ledger, events: int) -> frozenset[Window]:
    """The tiles with a successful result after the first `events` events.

    Raises:
        InputError, StorageUnavailableError: as for `Ledger.table`.
    """
    return frozenset(_done(ledger.table(_COLUMNS).slice(events)))


def _done(table: pa.Table) -> dict[Window, str]:
    rows = zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True)
    return {Window(*window): checksum for state, *window, checksum in rows if state == "done"}
