"""The record of every tile of one scene's map and of every attempt at it: one process appends, any may read.

A ledger is a folder of **segments**, Parquet files `000001.parquet`, `000002.parquet`, ... Each is written whole or not
at all, only where there is none of its number, and never changed: what is there is always readable, and a second
writer is told instead of overwriting. A row is an event (`Entry`); what holds of a tile is its last one.

People read it with what they have:

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
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mibf.errors import InputError
from pipeline import storage
from pipeline.grid import Window
from pipeline.lease import LeaseHeldError
from pipeline.patience import patiently
from pipeline.tiles import Tile

#: What an event says of its tile: it is to be mapped; it was; its attempt failed; what was mapped is not to be used.
State = Literal["pending", "done", "failed", "stale"]

#: Events that are written at the latest together, and seconds between two writes at the least: on a disk, elsewhere.
FLUSH_ROWS, FLUSH_SECONDS, FLUSH_SECONDS_FAR = 5000, 1.0, 5.0
#: Later this share of the time since the ledger was opened, if that is more: hours of work make hundreds of segments, not
#: tens of thousands, and a driver that is killed loses no larger share of its work.
FLUSH_SHARE = 0.01
#: Segments that are read at a time.
_AT_A_TIME = 16

#: Values that are kept for sharing; should each tile have its own, keeping them all would take more than it saves.
_SHARED = 10_000
Shared = TypeVar("Shared", bound=int | str)

_NAME = re.compile(r"(\d{6,})\.parquet")
_WRITER = b"mibf:writer"
_TIMES = ("started", "finished")
#: The columns; those of the tile first, then the fields of `Entry` by their names. Only times may be missing.
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
_PLACE = ("scene", "y", "x", "height", "width")
#: What `last` is made of, and what `made` is.
_FOLDED = (*_PLACE, "state", "fingerprint", "model", "attempt", "cause", "finished", "checksum", "pixels", "rows")
_MADE = ("state", *_PLACE[1:], "fingerprint", "checksum", "worker", "rows")


class LedgerTakenError(LeaseHeldError):
    """Another process writes this ledger; the message names the segment and the remedy."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An event of a tile. Times are in seconds since 1970 UTC and are kept to the millisecond."""

    tile: Tile
    state: State
    fingerprint: str  #: hash of all that the tile's pixels depend on
    model: str = ""  #: digest of the bundle
    run: str = ""  #: the command that wrote the event
    attempt: int = 0  #: 1 for the first under this fingerprint; 0 where it is not known or there is none
    cause: str = ""  #: why it failed or is stale
    worker: str = ""  #: host, process and device
    started: float | None = None
    finished: float | None = None
    read_seconds: float = 0.0
    compute_seconds: float = 0.0
    write_seconds: float = 0.0
    pixels: int = 0  #: that were mapped
    rows: int = 0  #: of a cell that were in work at a time; fewer after memory ran out
    checksum: str = ""  #: SHA-256 of the tile's pixels in all products

    def __post_init__(self) -> None:
        if self.cause:  # of any library: it may sign a URL, or hold bytes of a file's name that are no UTF-8
            cause = storage.without_queries(self.cause).encode("utf-8", "replace").decode()
            object.__setattr__(self, "cause", cause)


@dataclass(frozen=True, slots=True)
class TileState:
    """What holds of a tile: its last event, and how often it was tried under that event's fingerprint.

    Events of state done and failed count as attempts, those of one `attempt` once: a task may be told of twice.
    Another fingerprint begins anew.
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
class Made:
    """What an attempt that was done has made of a tile; the fields are those of `Entry`."""

    fingerprint: str
    checksum: str
    worker: str
    rows: int


class Ledger:
    """The ledger in a folder at a URL: `Ledger.open` reads what is there; then it may be appended to, from one thread."""

    def __init__(self, url: str, tell: Callable[[str], None] = lambda line: None) -> None:
        self.url, self._tell = url, tell
        self._scene = ""
        self._last: dict[Window, TileState] = {}
        self._shared: dict[Any, Any] = {}
        self._buffer: list[Entry] = []
        self._next = 1  # number of the segment to be written
        self._token = uuid.uuid4().hex  # tells our segments from another writer's
        self._opened_at = self._written_at = time.monotonic()
        self._given_up = False

    @classmethod
    def open(cls, url: str, *, tell: Callable[[str], None] = lambda line: None) -> Ledger:
        """The ledger at a URL as it is now; where there is no folder, an empty one. Nothing is written.

        Args:
            url: the ledger's folder.
            tell: given a line when an object store does not answer and is waited for.

        Raises:
            InputError: a segment is damaged.
            AwayError: the object store does not answer.
        """
        ledger = cls(url, tell)
        numbers = ledger._numbers()
        for segment in ledger._segments(numbers, _FOLDED):
            ledger._fold(segment)
        ledger._next = numbers[-1] + 1 if numbers else 1
        pa.default_memory_pool().release_unused()  # Arrow keeps some of each thread that has read: 150 MB in all
        return ledger

    def append(self, entries: Iterable[Entry]) -> None:
        """Take up events, in the order in which they happened.

        They are written when `FLUSH_ROWS` have gathered, or when a write is `FLUSH_SECONDS` ago (`FLUSH_SECONDS_FAR`
        where the ledger is not on a disk, and more after hours); what is not yet written is lost with its process.

        Raises:
            ValueError: an event is of another scene than those before.
            LedgerTakenError, AwayError, OSError: as for `flush`.
        """
        for entry in entries:
            self._take(entry.tile, entry.state, entry.fingerprint, entry.model, entry.attempt, entry.cause,
                       _milliseconds(entry.finished), entry.checksum, entry.pixels, entry.rows)  # fmt: skip
            self._buffer.append(entry)
            if len(self._buffer) >= FLUSH_ROWS:
                self.flush()
        pause = FLUSH_SECONDS if storage.is_local(self.url) else FLUSH_SECONDS_FAR
        now = time.monotonic()
        if now - self._written_at >= max(pause, FLUSH_SHARE * (now - self._opened_at)):
            self.flush()

    def flush(self) -> None:
        """Write what was appended, as one segment; nothing happens where all is written.

        Raises:
            LedgerTakenError: another process has written since this ledger was opened. What was not written is dropped.
            AwayError: the object store does not answer. What was not written is kept, for the next call.
            OSError: the disk does not take it. The same holds.
        """
        while self._buffer:
            try:
                written = self._write(self._place(self._next))
            except Exception:
                self._given_up = True
                raise
            del self._buffer[:written]
            self._next += 1
            self._given_up = False
        self._written_at = time.monotonic()

    def close(self) -> None:
        """Write what was appended. What could not be written just before is not tried again."""
        if not self._given_up:
            self.flush()

    @contextmanager
    def writing(self) -> Iterator[Ledger]:
        """`close` at the end of the block, whatever ends it."""
        try:
            yield self
        finally:
            self.close()

    def last(self) -> dict[Window, TileState]:
        """What holds of each tile of which there is an event, written or not."""
        return dict(self._last)

    def table(self) -> pa.Table:
        """All events in the order in which they were appended, those of other processes since the opening too.

        Its columns are `scene, y, x, height, width` of the tile, then the fields of `Entry`.

        Raises:
            InputError: a segment is damaged.
            AwayError: the object store does not answer.
        """
        return pa.concat_tables([*self._segments(self._numbers(), _SCHEMA.names), _to_table(self._buffer)])

    def made(self) -> dict[Window, list[Made]]:
        """What was made of each tile that was ever done, the oldest first; of events as in `table`.

        A published map has one of these of each of its tiles: the last, unless tiles were mapped again since.

        Raises:
            InputError, AwayError: as for `table`.
        """
        found: dict[Window, list[Made]] = {}
        for segment in [*self._segments(self._numbers(), _MADE), _to_table(self._buffer).select(_MADE)]:
            columns = [segment[name].to_pylist() for name in _MADE]
            for state, y, x, height, width, fingerprint, checksum, worker, rows in zip(*columns, strict=True):
                if state == "done":
                    made = Made(self._share(fingerprint), checksum, self._share(worker), rows)
                    found.setdefault(Window(y, x, height, width), []).append(made)
        return found

    def _take(
        self, tile: Tile, state: State, fingerprint: str, model: str, attempt: int, cause: str, finished: int | None,
        checksum: str, pixels: int, rows: int,
    ) -> None:  # fmt: skip
        """Have an event as the last one of its tile; `finished` in milliseconds."""
        if tile.scene != self._scene:
            if self._last:
                raise ValueError(f"{storage.shown(self.url)}: is of scene {self._scene}, an event of {tile.scene}")
            self._scene = tile.scene
        before = self._last.get(tile.window)
        attempts = failed = 0
        if before is not None and before.fingerprint == fingerprint:
            attempts, failed = before.attempts, before.failed_attempts
        if state in ("done", "failed"):
            if 0 < attempt <= attempts:  # told of before, or a second run of the same task
                failed = max(failed, int(state == "failed"))
            else:
                attempts, failed = attempt or attempts + 1, failed + (state == "failed")
        self._last[tile.window] = TileState(
            self._share(state), self._share(fingerprint), self._share(model), attempts, failed, self._share(cause),
            None if finished is None else finished / 1000, checksum, self._share(pixels), self._share(rows),
        )  # fmt: skip

    def _fold(self, segment: pa.Table) -> None:
        columns = [self._values(segment[name]) for name in _FOLDED]
        for scene, y, x, height, width, *event in zip(*columns, strict=True):
            self._take(Tile(scene, Window(*map(self._share, (y, x, height, width)))), *event)

    def _values(self, column: pa.ChunkedArray) -> list[Any]:
        """A column's values, times in milliseconds."""
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        return list(column.to_pylist())

    def _share(self, value: Shared) -> Shared:
        """An equal value that is in memory already, where there is one: most of a map's tiles have them in common."""
        if len(self._shared) < _SHARED:
            return cast(Shared, self._shared.setdefault(value, value))
        return cast(Shared, self._shared.get(value, value))

    def _place(self, number: int) -> str:
        return storage.join(self.url, f"{number:06d}.parquet")

    def _numbers(self) -> list[int]:
        """Of the segments that are there. What a killed process left of one has another name."""
        names = patiently(self.url, lambda: storage.names(self.url), tell=self._tell)
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)

    def _segments(self, numbers: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read segments, some at a time: of an object store it is the answers that are waited for."""
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            for start in range(0, len(numbers), _AT_A_TIME):
                urls = [self._place(number) for number in numbers[start : start + _AT_A_TIME]]
                yield from pool.map(lambda url: self._segment(url, columns), urls)

    def _segment(self, url: str, columns: Sequence[str]) -> pa.Table:
        content = patiently(url, lambda: storage.read_bytes(url), tell=self._tell)
        expected = pa.schema([_SCHEMA.field(name) for name in columns])
        why: object = "not the columns or not all rows of a ledger's segment"
        try:
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            table = file.read(columns=columns, use_threads=False)
            if set(expected) <= set(table.schema) and table.num_rows == file.metadata.num_rows:
                return table.select(columns)
        except (pa.ArrowException, OSError, ValueError) as error:  # the last of a column's name that is no text
            why = error
        raise InputError(f"{storage.shown(url)}: is damaged ({why}); remove it: its tiles are then mapped again.")

    def _write(self, url: str) -> int:
        """Write what is in the buffer to a segment; how many of its events are there.

        Raises:
            LedgerTakenError: the segment is another's.
        """
        content = _to_parquet(self._buffer, self._token)
        if patiently(url, lambda: storage.create_bytes(url, content), tell=self._tell):
            return len(self._buffer)
        # It may be ours: a write whose answer was lost is there although it failed, with what was then in the buffer.
        content = patiently(url, lambda: storage.read_bytes(url), tell=self._tell)
        try:
            described = pq.read_metadata(pa.BufferReader(content))
        except (pa.ArrowException, OSError, ValueError):
            described = None
        if described is None or (described.metadata or {}).get(_WRITER) != self._token.encode():
            self._buffer.clear()
            raise LedgerTakenError(
                f"{storage.shown(url)}: another run writes this ledger; wait for its end, then run the same command again: "
                "tiles that it has done are not mapped again."
            )
        return int(described.num_rows)


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _to_table(entries: Sequence[Entry]) -> pa.Table:
    columns: dict[str, list[Any]] = {"scene": [entry.tile.scene for entry in entries]}
    for name in _PLACE[1:]:
        columns[name] = [getattr(entry.tile.window, name) for entry in entries]
    for name in _SCHEMA.names[len(_PLACE) :]:
        values = [getattr(entry, name) for entry in entries]
        columns[name] = [_milliseconds(value) for value in values] if name in _TIMES else values
    return pa.table(columns, schema=_SCHEMA)


def _to_parquet(entries: Sequence[Entry], token: str) -> bytes:
    """A segment's content. Most are of a few rows, so that what describes them is kept small."""
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
