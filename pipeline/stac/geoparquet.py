"""STAC items in GeoParquet files, as the specification STAC-GeoParquet lays them out."""

from __future__ import annotations

import io
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


def is_geoparquet(url: str) -> bool:
    """Whether a name says that a file is GeoParquet."""
    return url.partition("?")[0].lower().endswith((".parquet", ".geoparquet", ".pq"))


def read_table(url: str) -> list[dict[str, Any]]:
    """Read all items of a file, as they are in JSON.

    Raises:
        InputError: it is missing, too large, or not STAC-GeoParquet.
    """
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(storage.read_at_most(url, MAX_BYTES)))
        return [_without_nulls(item) for item in stac_table_to_items(table)]
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file; check its name.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{url}: cannot be read as STAC-GeoParquet ({reason[:300]}).") from error


def write_table(url: str, items: Sequence[Mapping[str, Any]]) -> None:
    """Write items to a file, atomically.

    Raises:
        InputError: items do not have the same kinds of values in the same fields, which a table must.
    """
    try:
        table = parse_stac_items_to_arrow([dict(item) for item in items]).read_all()
        with tempfile.TemporaryDirectory(prefix="mibf-items-") as folder:
            path = Path(folder, "items.parquet")
            to_parquet(table, path)
            content = path.read_bytes()
    except (ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{url}: the items cannot be written as STAC-GeoParquet ({reason[:300]}); write them as JSON instead, with a "
            "name that ends in .json."
        ) from error
    storage.write_bytes(url, content)


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
