"""Check the objects of a store against the records of what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.io import checksums, storage
from pipeline.parallel.executor import Executor
from pipeline.store.records import Objects, StoreRecords


def find_corrupt_objects(
    executor: Executor, url: str, records: StoreRecords, *, each: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Compare a store with its records: one line per object that is missing, truncated or changed."""
    found: list[str] = []

    def take(lines: Sequence[str]) -> None:
        found.extend(lines)
        each(1)

    executor.each(_check_shard, (url, records.objects), _groups(records), take)
    return sorted(found)


def _groups(records: StoreRecords) -> list[tuple[str, list[str]]]:
    """The objects to check together, with the location of their shard."""
    groups = [("", list(records.template))]
    for shard in records.shards:
        w = shard.window
        groups.append((f" (rows {w.y} to {w.y + w.height - 1}, columns {w.x} to {w.x + w.width - 1})", list(shard.objects)))
    return groups


def _check_shard(shared: tuple[str, Objects], group: tuple[str, list[str]]) -> list[str]:
    url, objects = shared
    where, keys = group
    lines = []
    for key in keys:
        size, digest = objects[key]
        try:
            found, its_digest = checksums.sha256(storage.join(url, key))
        except FileNotFoundError:
            lines.append(f"{key}{where}: is missing")
            continue
        except OSError as error:
            lines.append(f"{key}{where}: cannot be read ({error})")
            continue
        if found != size:
            lines.append(f"{key}{where}: has {found:,} bytes instead of {size:,}")
        elif its_digest != digest:
            lines.append(f"{key}{where}: has a different checksum than when it was written")
    return lines
