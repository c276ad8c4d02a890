"""The ledger's file format, written out: ledgers of earlier versions have these columns and are still read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mibf.errors import InputError
from pipeline.grid import Tile, Window
from pipeline.maps.ledger import Ledger, LedgerEvent, TileVersion
from tests.support.ledgers import COLUMNS, earlier_segment

FAILED = {
    "scene": "valley", "y": 0, "x": 64, "height": 64, "width": 64, "state": "failed", "fingerprint": "f1", "model": "m",
    "run": "r1", "attempt": 1, "cause": "out of memory", "worker": "node/7/cuda", "started": None, "finished": None,
    "read_seconds": 0.5, "compute_seconds": 0.0, "write_seconds": 0.0, "pixels": 0, "rows": 0, "checksum": "",
}  # fmt: skip  # pairs: one per line would fill a page
TIMES = {"started": datetime(2026, 1, 2, 3, 4, 5, 250000, UTC), "finished": datetime(2026, 1, 2, 3, 4, 6, 500000, UTC)}
DONE = FAILED | {"state": "done", "attempt": 2, "cause": "", "pixels": 4000, "rows": 16, "checksum": "c1"} | TIMES


def write_segment(folder: Path, *rows: dict[str, object], without: str = "") -> None:
    """Write the first segment of a ledger as an earlier version did, optionally without a column."""
    folder.mkdir()
    (folder / "000001.parquet").write_bytes(earlier_segment(rows, without=without))


def test_ledger_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    write_segment(tmp_path / "ledger", FAILED, DONE)
    ledger = Ledger.open(str(tmp_path / "ledger"))
    window = Window(0, 64, 64, 64)
    state = ledger.last()[window]
    assert (state.state, state.fingerprint, state.model, state.checksum) == ("done", "f1", "m", "c1")
    assert (state.attempts, state.failed_attempts, state.cause) == (2, 1, "")
    assert (state.finished, state.pixels, state.rows) == (TIMES["finished"].timestamp(), 4000, 16)
    assert ledger.versions() == {window: [TileVersion("f1", "c1", "node/7/cuda", 16)]}
    assert ledger.table().to_pylist() == [FAILED, DONE]


def test_ledger_of_an_earlier_version_is_continued_in_the_same_format(tmp_path: Path) -> None:
    write_segment(tmp_path / "ledger", DONE)
    ledger = Ledger.open(str(tmp_path / "ledger"))
    tile = Tile("valley", Window(0, 0, 64, 64))
    with ledger.writing():
        ledger.append([LedgerEvent(tile=tile, state="done", fingerprint="f2", checksum="c2")])
    first, second = (pq.read_schema(tmp_path / f"ledger/00000{number}.parquet") for number in (1, 2))
    assert second.remove_metadata() == first.remove_metadata()
    assert second.names == list(COLUMNS)
    assert set(Ledger.open(str(tmp_path / "ledger")).last()) == {tile.window, Window(0, 64, 64, 64)}


def test_segment_without_a_column_is_refused_by_name(tmp_path: Path) -> None:
    write_segment(tmp_path / "ledger", DONE, without="fingerprint")
    with pytest.raises(InputError, match=r"000001\.parquet: is damaged .*remove it, and its tiles are mapped again"):
        Ledger.open(str(tmp_path / "ledger"))
