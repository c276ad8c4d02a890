"""Read a table of scenes: Parquet, CSV, or JSON (a list of objects). Sizes are limited, since the file is untrusted."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import posixpath
from collections import Counter
from dataclasses import dataclass
from datetime import date
from typing import Any

from mibf.errors import InputError

#: Maximum size of a table in bytes, as stored and, of Parquet, as decoded; and its maximum number of rows.
MAX_BYTES, MAX_DECODED_BYTES, MAX_ROWS = 64 << 20, 1 << 30, 1_000_000


@dataclass(frozen=True)
class Table:
    """A table as it was read."""

    name: str  #: its URL, for messages
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]  #: values by column, without empty cells

    def place(self, row: int, column: str | None = None) -> str:
        """Name a row, counted from 0, and a column in a message, which counts rows from 1."""
        name = self.rows[row].get("name")
        named = "" if name is None else f" ({name!r})"
        return f"{self.name}, row {row + 1}{named}" + ("" if column is None else f", column {column!r}")


def read_table(url: str, *, columns: tuple[str, ...] | None = None, sha256: str | None = None) -> Table:
    """Read a table; its kind follows from the suffix.

    Args:
        url: its path or URL.
        columns: those to read; None for all.
        sha256: the expected SHA-256 of the file, in hexadecimal digits; None if any is accepted.

    Raises:
        InputError: the file cannot be read, is too large or not of its kind, has no rows or lacks a column, or differs from
            what the SHA-256 belongs to.
    """
    from pipeline.io import storage  # slow import, not needed for configurations without a table

    name = storage.redact_url(url)
    suffix = posixpath.splitext(name)[1].lower()
    readers = {".parquet": _parquet, ".csv": _csv, ".json": _json}
    if suffix not in readers:
        raise InputError(f"{name}: must be a table of scenes with the suffix .parquet, .csv or .json.")
    with storage.as_input_errors(url):
        try:
            content = storage.read_at_most(url, MAX_BYTES)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise InputError(f"{name}: no such file, or it cannot be reached; check `scenes.table`.") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"{name}: is not the table that was saved (its SHA-256 is not `scenes.sha256`). Restore it, or remove "
            "`scenes.sha256` to use it as it is."
        )
    found, rows = readers[suffix](content, name, columns)
    _check_columns(name, found, columns)
    if not rows:
        raise InputError(f"{name}: has no rows; a table of scenes has one row for each scene.")
    if len(rows) > MAX_ROWS:
        raise InputError(f"{name}: has {len(rows):,} rows, at most {MAX_ROWS:,} are allowed; split it.")
    kept = found if columns is None else columns
    return Table(name, tuple(kept), [_without_empty(row, kept) for row in rows])


def _check_columns(name: str, found: list[str], wanted: tuple[str, ...] | None) -> None:
    twice = [column for column, count in Counter(found).items() if count > 1]
    if twice:
        raise InputError(f"{name}: has two columns {twice[0]!r}; rename one.")
    lacking = [column for column in wanted or () if column not in found]
    if lacking:
        raise InputError(f"{name}: has no column {lacking[0]!r} (of `scenes.columns`); its columns are {', '.join(found)}.")


def _without_empty(row: dict[str, Any], columns: list[str] | tuple[str, ...]) -> dict[str, Any]:
    values = {column: row.get(column) for column in columns}
    return {column: value for column, value in values.items() if not _is_empty(value)}


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _csv(content: bytes, name: str, columns: tuple[str, ...] | None) -> tuple[list[str], list[dict[str, Any]]]:
    """Read CSV in UTF-8, separated by commas. Empty cells have no value; `[` or `{` begins a list or mapping in JSON."""
    del columns
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name}: is not CSV in UTF-8, separated by commas ({error}).") from error
    lines = [line for line in lines if line]
    header = [column.strip() for column in lines[0]] if lines else []
    rows = []
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(header):
            raise InputError(
                f"{name}: row {number} has {len(line)} values for {len(header)} columns; quote values that contain commas."
            )
        rows.append({c: _cell(text.strip(), name, number, c) for c, text in zip(header, line, strict=True)})
    return header, rows


def _cell(text: str, name: str, row: int, column: str) -> Any:
    if not text.startswith(("[", "{")):
        return text or None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name}: row {row}, column {column!r}: begins as a list or mapping but is not JSON ({error}); found {text!r}."
        ) from error


def _json(content: bytes, name: str, columns: tuple[str, ...] | None) -> tuple[list[str], list[dict[str, Any]]]:
    del columns
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: is not JSON ({error}).") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{name}: must be a list of objects, one for each scene.")
    return list(dict.fromkeys(column for row in rows for column in row)), rows


def _parquet(content: bytes, name: str, columns: tuple[str, ...] | None) -> tuple[list[str], list[dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        decoded = sum(group.total_byte_size for group in groups)
        if decoded > MAX_DECODED_BYTES or file.metadata.num_rows > MAX_ROWS:
            raise InputError(
                f"{name}: has {file.metadata.num_rows:,} rows and {decoded:,} bytes, at most {MAX_ROWS:,} and "
                f"{MAX_DECODED_BYTES:,} are allowed; split it."
            )
        found = list(file.schema_arrow.names)
        table = file.read(columns=None if columns is None else [column for column in columns if column in found])
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name}: is not a Parquet file that can be read ({str(error).splitlines()[0]}).") from error
    for number, row in enumerate(rows, 1):
        for column, value in row.items():
            if isinstance(value, bytes):
                raise InputError(
                    f"{name}: row {number}, column {column!r}: holds binary data, such as geometries; list the columns to "
                    "read in `scenes.columns`."
                )
            if isinstance(value, date):  # also times
                row[column] = value.isoformat()
    return found, rows
