"""STAC items in GeoParquet files, as the specification STAC-GeoParquet lays them out."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from stac_geoparquet.arrow import parse_stac_items_to_arrow, stac_table_to_items, to_parquet

from mibf.errors import InputError
from pipeline.io import storage

#: Maximum bytes of a file of items; enough for some hundred thousand.
MAX_BYTES = 512 * 1024 * 1024
#: Key of the file's metadata for a value of our own.
KEPT = b"mibf"


def is_geoparquet(url: str) -> bool:
    """Whether a name says that a file is GeoParquet."""
    return url.partition("?")[0].lower().endswith((".parquet", ".geoparquet", ".pq"))


def read_table(url: str) -> list[dict[str, Any]]:
    """Read all items of a file, as they are in JSON.

    Raises:
        InputError: it is missing, too large, or not STAC-GeoParquet.
    """
    return _items(_read(url), url)


def decode_table(content: bytes, name: str) -> list[dict[str, Any]]:
    """Return the items of a file's content; `name` is the file's, for messages.

    Raises:
        InputError: it is not STAC-GeoParquet.
    """
    return _items(_table(content, name), name)


def read_kept(url: str) -> tuple[list[dict[str, Any]], Any]:
    """Read all items of a file, and what `encode_table` was given to keep with them; None if nothing.

    Raises:
        InputError: as `read_table`.
    """
    table = _read(url)
    kept = (table.schema.metadata or {}).get(KEPT)
    try:
        return _items(table, url), None if kept is None else json.loads(kept)
    except ValueError as error:
        raise _unreadable(url, error) from error


def _read(url: str) -> pyarrow.Table:
    try:
        content = storage.read_at_most(url, MAX_BYTES)
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file; check its name.") from error
    except OSError as error:
        raise _unreadable(url, error) from error
    return _table(content, url)


def _table(content: bytes, url: str) -> pyarrow.Table:
    try:
        return pyarrow.parquet.read_table(io.BytesIO(content), page_checksum_verification=True)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(url, error) from error


def _items(table: pyarrow.Table, url: str) -> list[dict[str, Any]]:
    try:
        return [_without_nulls(item) for item in stac_table_to_items(table)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pyarrow.ArrowException) as error:
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{url}: cannot be read as STAC-GeoParquet ({reason[:300]}).")


def write_table(url: str, items: Sequence[Mapping[str, Any]]) -> None:
    """Write items to a file, atomically.

    Raises:
        InputError: items do not have the same kinds of values in the same fields, which a table must.
    """
    try:
        content = encode_table(items)
    except MixedItemsError as error:
        raise InputError(f"{url}: {error}; write them as JSON instead, with a name that ends in .json.") from error
    storage.write_bytes(url, content)


class MixedItemsError(Exception):
    """Items do not have the same kinds of values in the same fields, which a table must."""


def encode_table(items: Sequence[Mapping[str, Any]], kept: Any = None) -> bytes:
    """Return the content of a file of items; `kept` is a JSON value to keep in its metadata.

    Raises:
        MixedItemsError: the items cannot be a table.
    """
    try:
        table = parse_stac_items_to_arrow([dict(item) for item in items]).read_all()
        with tempfile.TemporaryDirectory(prefix="mibf-items-") as folder:
            path = Path(folder, "items.parquet")
            to_parquet(table, path, write_page_checksum=True)
            if kept is not None:  # `to_parquet` writes its own metadata alone
                table = pyarrow.parquet.read_table(path)
                stated = {**table.schema.metadata, KEPT: json.dumps(kept, sort_keys=True).encode()}
                pyarrow.parquet.write_table(table.replace_schema_metadata(stated), path, write_page_checksum=True)
            return path.read_bytes()
    except (ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MixedItemsError(f"the items cannot be written as STAC-GeoParquet ({reason[:300]})") from error


def _without_nulls(item: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a table states as null because another item has it; the time of an interval's item is null in JSON."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(each) for key, each in value.items() if each is not None}
        return [cleaned(each) for each in value] if isinstance(value, list) else value

    found: dict[str, Any] = cleaned(item)
    found.setdefault("properties", {}).setdefault("datetime", None)
    found.setdefault("geometry", None)
    return found
