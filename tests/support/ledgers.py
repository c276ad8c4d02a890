"""Events and ledgers of a scene with four tiles."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from pipeline.grid import Tile, Window
from pipeline.maps.ledger import Ledger, LedgerEvent, State

WINDOWS = [Window(0, x, 8, 8) for x in range(0, 32, 8)]

TEXT, INT, MILLISECONDS = pa.string(), pa.int32(), pa.timestamp("ms", tz="UTC")
#: The columns that ledgers have had since their first version, in their order; only times may be null.
COLUMNS = {
    "scene": TEXT, "y": INT, "x": INT, "height": INT, "width": INT, "state": TEXT, "fingerprint": TEXT, "model": TEXT,
    "run": TEXT, "attempt": INT, "cause": TEXT, "worker": TEXT, "started": MILLISECONDS, "finished": MILLISECONDS,
    "read_seconds": pa.float64(), "compute_seconds": pa.float64(), "write_seconds": pa.float64(), "pixels": pa.int64(),
    "rows": INT, "checksum": TEXT,
}  # fmt: skip  # pairs: one per line would fill a page
_TIMES = ("started", "finished")

STATES: tuple[State, ...] = get_args(State)


def make_event(window: Window = WINDOWS[0], state: State = "done", fingerprint: str = "now", **fields: Any) -> LedgerEvent:
    """Return an event of the scene; `fields` sets the other columns."""
    return LedgerEvent(tile=Tile("scene", window), state=state, fingerprint=fingerprint, **fields)


def memory_url() -> str:
    """Return the URL of a new ledger in memory."""
    return f"memory://{uuid.uuid4().hex}/ledger"


def write_ledger(url: str, events: Sequence[LedgerEvent]) -> Ledger:
    """Append events to the ledger at a URL as one segment."""
    ledger = Ledger.open(url)
    with ledger.writing():
        ledger.append(events)
    return ledger


def earlier_segment(rows: Iterable[Mapping[str, object]], *, without: str = "") -> bytes:
    """Return a segment of a ledger as the first version wrote it, optionally without a column."""
    schema = pa.schema([pa.field(name, kind, nullable=name in _TIMES) for name, kind in COLUMNS.items() if name != without])
    table = pa.Table.from_pylist([dict(row) for row in rows], schema)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({"mibf:writer": uuid.uuid4().hex}),
        sink,
        compression="zstd",
        use_dictionary=[name for name in table.column_names if COLUMNS[name] == TEXT and name != "checksum"],
        write_statistics=False,
        store_schema=False,
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


@st.composite
def events(draw: st.DrawFn) -> LedgerEvent:
    """Strategy for any event."""
    time_ = st.none() | st.integers(0, 2**40).map(lambda n: n / 1000)
    seconds = st.floats(0, 1e6)
    return make_event(
        draw(st.sampled_from(WINDOWS)),
        draw(st.sampled_from(STATES)),
        draw(st.sampled_from(["before", "now"])),
        model=draw(st.sampled_from(["", "m"])),
        run=draw(st.text(max_size=3)),
        attempt=draw(st.integers(0, 4)),
        cause=draw(st.text(max_size=5)),
        worker=draw(st.text(max_size=3)),
        started=draw(time_),
        finished=draw(time_),
        read_seconds=draw(seconds),
        compute_seconds=draw(seconds),
        write_seconds=draw(seconds),
        pixels=draw(st.integers(0, 2**40)),
        rows=draw(st.integers(0, 2**20)),
        checksum=draw(st.text(max_size=3)),
    )


histories = st.lists(events(), max_size=12)
