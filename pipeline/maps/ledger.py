"""Ledger of one scene's map: every tile and every attempt at it. One process appends; any process may read.

A ledger is a folder of **segments**, Parquet files `000001.parquet`, `000002.parquet`, ... A segment is written
atomically, only if its number is unused, and never modified: existing segments are always readable, and a second writer
gets an error instead of overwriting. A row is an event (`LedgerEvent`); a tile's current state is that of its last event.

Read it with standard tools:

    pandas.read_parquet("maps/SCENE/RUN/ledger")
    duckdb.sql("SELECT state, count(*) FROM read_parquet('maps/SCENE/RUN/ledger/*.parquet') GROUP BY state")
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mibf.errors import InputError
from pipeline.grid import Tile, Window
from pipeline.io import storage
from pipeline.io.lease import Lease, LeaseHeldError
from pipeline.io.retry import call_with_retry
from pipeline.maps.outcome import TileOutcome

#: State of a tile after an event: to be mapped; mapped; the attempt failed; mapped, but the result is outdated.
State = Literal["pending", "done", "failed", "stale"]
#: Maximum number of buffered events, and minimum seconds between two writes: on a local disk, elsewhere.
FLUSH_ROWS, FLUSH_SECONDS, FLUSH_SECONDS_FAR = 5000, 1.0, 5.0
#: The interval grows to this fraction of the time since the ledger was opened: hours of work make hundreds of segments, not
#: tens of thousands, and a driver that is killed loses at most this fraction of its work.
FLUSH_SHARE = 0.01
#: Segments read concurrently.
_BATCH_ROWS = 16
#: Maximum number of interned values; if every tile had its own values, keeping them all would cost more than it saves.
_SHARED = 10_000
Shared = TypeVar("Shared", bound=int | str)
_NAME = re.compile(r"(\d{6,})\.parquet")
_WRITER = b"mibf:writer"
_TIMES = ("started", "finished")
#: Columns: those of the tile first, then the fields of `LedgerEvent` by name. Only the times are nullable.
_SCHEMA = pa.schema(
    [
        pa.field("scene", pa.string(), nullable=False),
        *(pa.field(name, pa.int32(), nullable=False) for name in ("y", "x", "height", "width")),
        *(pa.field(name, pa.string(), nullable=False) for name in ("state", "fingerprint", "model", "run")),
        pa.field("attempt", pa.int32(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("cause", "worker")),
        *(pa.field(name, pa.timestamp("ms", tz="UTC")) for name in _TIMES),
        *(pa.field(f"{work}_seconds", pa.float64(), nullable=False) for work in ("read", "compute", "write")),
        pa.field("pixels", pa.int64(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
    ]
)
_TILE_COLUMNS = ("scene", "y", "x", "height", "width")
#: Columns needed for `made`.
_VERSION_COLUMNS = ("state", *_TILE_COLUMNS[1:], "fingerprint", "checksum", "worker", "rows")


class LedgerTakenError(LeaseHeldError):
    """Another process writes to this ledger; the message names the segment and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEvent(TileOutcome):
    """An event of a tile: an attempt with its outcome, or a change of state without one; times are stored in milliseconds.

    `cause` says why the tile failed or is stale.
    """

    state: State
    fingerprint: str  #: hash of everything that the tile's pixels depend on
    model: str = ""  #: digest of the bundle
    run: str = ""  #: id of the command invocation that wrote the event
    attempt: int = 0  #: counted from 1 for each fingerprint; 0 if unknown or not an attempt

    def __post_init__(self) -> None:
        if self.cause:  # from any library: may contain a signed URL, or file-name bytes that are not valid UTF-8
            cause = storage.without_queries(self.cause).encode("utf-8", "replace").decode()
            object.__setattr__(self, "cause", cause)

    @classmethod
    def of(cls, outcome: TileOutcome, *, fingerprint: str, model: str, run: str, attempt: int) -> LedgerEvent:
        """The event of an attempt: done, or failed if its outcome has a cause."""
        values = {field.name: getattr(outcome, field.name) for field in fields(TileOutcome)}
        state: State = "failed" if outcome.cause else "done"
        return cls(**values, state=state, fingerprint=fingerprint, model=model, run=run, attempt=attempt)


class _Folded(NamedTuple):
    """The columns of an event that a tile's state is made of, without those of the tile; `finished` in milliseconds."""

    state: State
    fingerprint: str
    model: str
    attempt: int
    cause: str
    finished: int | None
    checksum: str
    pixels: int
    rows: int


@dataclass(frozen=True, slots=True)
class TileState:
    """Current state of a tile: its last event, and the number of attempts under that event's fingerprint.

    Events with state done or failed are attempts. Events with the same `attempt` count once, because a task may be
    reported twice. A new fingerprint resets the counts.
    """

    state: State
    fingerprint: str
    model: str
    attempts: int
    failed_attempts: int
    cause: str
    finished: float | None  #: seconds since 1970 UTC
    checksum: str
    pixels: int
    rows: int


@dataclass(frozen=True, slots=True)
class TileVersion:
    """The result of a successful attempt at a tile; the fields are those of `LedgerEvent`."""

    fingerprint: str
    checksum: str
    worker: str
    rows: int


class Ledger:
    """The ledger in a folder at a URL. `Ledger.open` reads the existing events; one thread may then append."""

    def __init__(self, url: str, report: Callable[[str], None] = lambda line: None) -> None:
        self.url, self._report = url, report
        self._scene = ""
        self._last: dict[Window, TileState] = {}
        self._shared: dict[Any, Any] = {}
        self._buffer: list[LedgerEvent] = []
        self._next = 1  # number of the segment to be written
        self._token = uuid.uuid4().hex  # distinguishes our segments from another writer's
        self._opened_at = self._written_at = time.monotonic()
        self._flush_failed = False
        self._lease = Lease()

    @classmethod
    def open(cls, url: str, *, report: Callable[[str], None] = lambda line: None) -> Ledger:
        """Open the ledger at a URL, or an empty one if the folder does not exist. Writes nothing.

        Args:
            url: the ledger's folder.
            report: called with a line of text when an object store does not respond and the request is retried.

        Raises:
            InputError: a segment is damaged.
            StorageUnavailableError: the object store does not respond.
        """
        ledger = cls(url, report)
        numbers = ledger._numbers()
        for segment in ledger._segments(numbers, (*_TILE_COLUMNS, *_Folded._fields)):
            ledger._fold(segment)
        ledger._next = numbers[-1] + 1 if numbers else 1
        pa.default_memory_pool().release_unused()  # Arrow keeps memory for each reading thread: 150 MB in total
        return ledger

    def append(self, entries: Iterable[LedgerEvent]) -> None:
        """Append events in the order in which they happened.

        They are written when `FLUSH_ROWS` are buffered, or when the last write was `FLUSH_SECONDS` ago
        (`FLUSH_SECONDS_FAR` if the ledger is not on a local disk; longer after hours). Unwritten events are lost if the
        process dies.

        Raises:
            ValueError: an event belongs to a different scene than the earlier ones.
            LedgerTakenError, StorageUnavailableError, OSError: as for `flush`.
        """
        for entry in entries:
            self._apply(entry.tile, _Folded(*(_stored(entry, name) for name in _Folded._fields)))
            self._buffer.append(entry)
            if len(self._buffer) >= FLUSH_ROWS:
                self.flush()
        pause = FLUSH_SECONDS if storage.is_local(self.url) else FLUSH_SECONDS_FAR
        now = time.monotonic()
        if now - self._written_at >= max(pause, FLUSH_SHARE * (now - self._opened_at)):
            self.flush()

    def flush(self) -> None:
        """Write the buffered events as one segment; do nothing if there are none.

        Raises:
            LedgerTakenError: another process has written since this ledger was opened. The buffered events are dropped.
            LeaseLostError: the workspace lease was lost. The buffered events are kept, and no longer written.
            StorageUnavailableError: the object store does not respond. The buffered events are kept for the next call.
            OSError: the disk write failed. The buffered events are kept for the next call.
        """
        while self._buffer:
            try:
                self._lease.check()  # a segment of ours would stop the run that holds the workspace now
                written = self._write(self._segment_url(self._next))
            except Exception:
                self._flush_failed = True
                raise
            del self._buffer[:written]
            self._next += 1
            self._flush_failed = False
        self._written_at = time.monotonic()

    def close(self) -> None:
        """Write the buffered events, unless the previous write failed."""
        if not self._flush_failed:
            self.flush()

    @contextmanager
    def writing(self, lease: Lease | None = None) -> Iterator[Ledger]:
        """Context manager: check `lease` before each write; `close` at the end of the block, also after an exception."""
        self._lease = lease or Lease()
        try:
            yield self
        finally:
            self.close()

    def last(self) -> dict[Window, TileState]:
        """The current state of every tile with at least one event, written or buffered."""
        return dict(self._last)

    def table(self, columns: Sequence[str] = tuple(_SCHEMA.names)) -> pa.Table:
        """All events in the order in which they were appended, including those written by other processes since `open`.

        The columns are `scene, y, x, height, width` of the tile, then the fields of `LedgerEvent`; or some of them.

        Raises:
            InputError: a segment is damaged.
            StorageUnavailableError: the object store does not respond.
        """
        return pa.concat_tables([*self._segments(self._numbers(), columns), _to_table(self._buffer).select(columns)])

    def versions(self) -> dict[Window, list[TileVersion]]:
        """The successful results of each tile, oldest first, from the same events as `table`.

        A published map contains one of them for each of its tiles: the last, unless tiles were mapped again since.

        Raises:
            InputError, StorageUnavailableError: as for `table`.
        """
        found: dict[Window, list[TileVersion]] = {}
        for segment in [
            *self._segments(self._numbers(), _VERSION_COLUMNS),
            _to_table(self._buffer).select(_VERSION_COLUMNS),
        ]:
            columns = [segment[name].to_pylist() for name in _VERSION_COLUMNS]
            for state, y, x, height, width, fingerprint, checksum, worker, rows in zip(*columns, strict=True):
                if state == "done":
                    version = TileVersion(self._share(fingerprint), checksum, self._share(worker), rows)
                    found.setdefault(Window(y, x, height, width), []).append(version)
        return found

    def _apply(self, tile: Tile, event: _Folded) -> None:
        """Make an event the last one of its tile."""
        if tile.scene != self._scene:
            if self._last:
                raise ValueError(
                    f"{storage.redact_url(self.url)}: ledger of scene {self._scene}, event of scene {tile.scene}"
                )
            self._scene = tile.scene
        before = self._last.get(tile.window)
        attempts = failed = 0
        if before is not None and before.fingerprint == event.fingerprint:
            attempts, failed = before.attempts, before.failed_attempts
        if event.state in ("done", "failed"):
            has_failed = event.state == "failed"
            if 0 < event.attempt <= attempts:  # reported before, or a second run of the same task
                failed = max(failed, int(has_failed))
            else:
                attempts, failed = event.attempt or attempts + 1, failed + has_failed
        self._last[tile.window] = TileState(
            state=self._share(event.state),
            fingerprint=self._share(event.fingerprint),
            model=self._share(event.model),
            attempts=attempts,
            failed_attempts=failed,
            cause=self._share(event.cause),
            finished=None if event.finished is None else event.finished / 1000,
            checksum=event.checksum,
            pixels=self._share(event.pixels),
            rows=self._share(event.rows),
        )

    def _fold(self, segment: pa.Table) -> None:
        columns = [self._values(segment[name]) for name in (*_TILE_COLUMNS, *_Folded._fields)]
        for scene, y, x, height, width, *event in zip(*columns, strict=True):
            self._apply(Tile(scene, Window(*map(self._share, (y, x, height, width)))), _Folded(*event))

    def _values(self, column: pa.ChunkedArray) -> list[Any]:
        """The values of a column, times in milliseconds."""
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        return list(column.to_pylist())

    def _share(self, value: Shared) -> Shared:
        """Intern a value: return an equal object already in memory. Most tiles of a map share their values."""
        if len(self._shared) < _SHARED:
            return cast(Shared, self._shared.setdefault(value, value))
        return cast(Shared, self._shared.get(value, value))

    def _segment_url(self, number: int) -> str:
        return storage.join(self.url, f"{number:06d}.parquet")

    def _numbers(self) -> list[int]:
        """Numbers of the existing segments. Partial files left by a killed process have other names."""
        names = call_with_retry(self.url, lambda: storage.names(self.url), report=self._report)
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)

    def _segments(self, numbers: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read segments, several concurrently: on an object store most of the time is spent waiting for responses."""
        with ThreadPoolExecutor(_BATCH_ROWS) as pool:
            for start in range(0, len(numbers), _BATCH_ROWS):
                urls = [self._segment_url(number) for number in numbers[start : start + _BATCH_ROWS]]
                yield from pool.map(lambda url: self._segment(url, columns), urls)

    def _segment(self, url: str, columns: Sequence[str]) -> pa.Table:
        content = call_with_retry(url, lambda: storage.read_bytes(url), report=self._report)
        expected = pa.schema([_SCHEMA.field(name) for name in columns])
        why: object = "columns are missing or have the wrong type, or rows are missing"
        try:
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            table = file.read(columns=columns, use_threads=False)
            if set(expected) <= set(table.schema) and table.num_rows == file.metadata.num_rows:
                return table.select(columns)
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column name that is not valid text
            why = error
        raise InputError(f"{storage.redact_url(url)}: is damaged ({why}); remove it, and its tiles are mapped again.")

    def _write(self, url: str) -> int:
        """Write the buffer to a segment and return how many of its events the segment holds.

        Raises:
            LedgerTakenError: the segment was written by another process.
        """
        content = _to_parquet(self._buffer, self._token)
        if call_with_retry(url, lambda: storage.create_bytes(url, content), report=self._report):
            return len(self._buffer)
        # It may be ours: an earlier write whose response was lost may have succeeded, with what was in the buffer then.
        content = call_with_retry(url, lambda: storage.read_bytes(url), report=self._report)
        try:
            described = pq.read_metadata(pa.BufferReader(content))
        except (pa.ArrowException, OSError, ValueError):
            described = None
        if described is None or (described.metadata or {}).get(_WRITER) != self._token.encode():
            self._buffer.clear()
            raise LedgerTakenError(
                f"{storage.redact_url(url)}: another run is writing this ledger; wait for it to finish, then run the same "
                "command again. Tiles that it has mapped are not mapped again."
            )
        return int(described.num_rows)


def _stored(event: LedgerEvent, name: str) -> Any:
    """A field of an event as the ledger stores it: times in milliseconds."""
    value = getattr(event, name)
    return round(value * 1000) if name in _TIMES and value is not None else value


def _to_table(entries: Sequence[LedgerEvent]) -> pa.Table:
    columns: dict[str, list[Any]] = {"scene": [entry.tile.scene for entry in entries]}
    for name in _TILE_COLUMNS[1:]:
        columns[name] = [getattr(entry.tile.window, name) for entry in entries]
    for name in _SCHEMA.names[len(_TILE_COLUMNS) :]:
        columns[name] = [_stored(entry, name) for entry in entries]
    return pa.table(columns, schema=_SCHEMA)


def _to_parquet(entries: Sequence[LedgerEvent], token: str) -> bytes:
    """Encode a segment. Most segments have few rows, so the metadata is kept small."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        _SCHEMA,
        compression="zstd",
        use_dictionary=[field.name for field in _SCHEMA if field.type == pa.string() and field.name != "checksum"],
        write_statistics=False,
        store_schema=False,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(_to_table(entries))
        writer.add_key_value_metadata({_WRITER: token})
    return bytes(sink.getvalue())
