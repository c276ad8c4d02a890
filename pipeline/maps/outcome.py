"""The outcome of one attempt at a tile: the record that mapper, workers, ledger, log and metrics share."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.grid import Tile


class DeviceFailedError(RuntimeError):
    """The device failed while a tile was computed, and this process cannot use it any more. Not a failure of the tile."""

    def __init__(self, tile: Tile, cause: str) -> None:
        super().__init__(f"{tile.key}: {cause}")
        self.tile, self.cause = tile, cause


@dataclass(frozen=True, slots=True, kw_only=True)
class TileOutcome:
    """One attempt at a tile. Durations are in seconds; `started` and `finished` are seconds since 1970 UTC.

    The names of the fields after `tile` are columns of the ledger and of the rows that workers return.
    """

    tile: Tile
    cause: str = ""  #: why it failed; empty on success
    worker: str = ""  #: host, process and device
    started: float | None = None
    finished: float | None = None
    read_seconds: float = 0.0
    compute_seconds: float = 0.0
    write_seconds: float = 0.0
    pixels: int = 0  #: number of mapped pixels
    rows: int = 0  #: rows of a cell computed at a time; reduced when memory ran out
    checksum: str = ""  #: SHA-256 of the tile's pixels in all products
