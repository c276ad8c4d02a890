"""Tile fingerprints, in three parts: the model, the settings and the algorithm version, and the input shards.

A tile reads its window and a halo around it, so its inputs are the shards that these intersect, identified by the
checksums recorded by `prepare`: when one shard changes, only the tiles that read it become stale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.store.records import StoreRecords

#: Names of the parts in order, as used in messages.
PARTS = ("the model", "the settings or the algorithm version", "the input")
_DIGITS = 12


def fingerprints(
    tiles: Sequence[Window],
    records: StoreRecords,
    *,
    model: str,
    settings: str,
    sources: Collection[str],
    halo: int,
    side: int,
) -> dict[Window, str]:
    """Compute the fingerprint of each tile of a scene.

    Args:
        tiles: windows of the tiles, covering the scene.
        records: checksums of the objects in the scene's store.
        model: digest of the model.
        settings: digest of everything else that is the same for all tiles.
        sources: sources whose values, validity or counts of dates are read.
        halo: pixels around a tile that are also read.
        side: side of the store's shards, in pixels.

    Raises:
        InputError: the records lack a shard that a tile reads.
    """
    by_shard = {}
    for shard in records.shards:
        taken = sorted((key, digest) for key, (_, digest) in shard.objects.items() if _is_read(key, sources))
        by_shard[shard.window.y // side, shard.window.x // side] = hashlib.sha256(repr(taken).encode()).hexdigest()
    # There are no shards beyond the scene. Its extent comes from the tiles, because the records may lack shards.
    last = max(tile.y + tile.height - 1 for tile in tiles) // side, max(tile.x + tile.width - 1 for tile in tiles) // side
    found = {}
    for tile in tiles:
        try:
            read = "".join(by_shard[position] for position in _shards(tile, halo, side, last))
        except KeyError as error:
            raise InputError(
                f"the store's records have no shard at row {error.args[0][0]}, column {error.args[0][1]}; run "
                "`mibf prepare` again."
            ) from error
        inputs = hashlib.sha256(read.encode()).hexdigest()
        found[tile] = ".".join(part[:_DIGITS] for part in (model, settings, inputs))
    return found


def tiles_without_data(
    tiles: Sequence[Window], records: StoreRecords, *, sources: Collection[str], side: int
) -> frozenset[Window]:
    """Return the tiles of a scene in which none of these sources has a valid pixel, as the records of their shards know it.

    `side` is that of the store's shards, in pixels. A tile that is smaller than a shard with data may have none, too.
    """
    empty = {
        (shard.window.y // side, shard.window.x // side)
        for shard in records.shards
        if not any(shard.valid.get(name, 1) for name in sources)
    }
    if not empty:
        return frozenset()
    last = max(tile.y + tile.height - 1 for tile in tiles) // side, max(tile.x + tile.width - 1 for tile in tiles) // side
    return frozenset(tile for tile in tiles if empty.issuperset(_shards(tile, 0, side, last)))


def difference(before: str, now: str) -> str:
    """Describe which parts of a fingerprint differ."""
    pairs = list(zip(before.split("."), now.split("."), strict=False))
    if len(pairs) != len(PARTS):
        return "the fingerprint format"
    return " and ".join(name for name, (one, other) in zip(PARTS, pairs, strict=True) if one != other)


def _is_read(key: str, sources: Collection[str]) -> bool:
    kind, _, rest = key.partition("/")
    return kind in ("sources", "valid", "counts") and rest.split("/c/")[0] in sources


def _shards(tile: Window, halo: int, side: int, last: tuple[int, int]) -> list[tuple[int, int]]:
    """The shards that a tile and its halo intersect, as (row, column), clipped to the scene's last shard."""
    down = range(max(0, tile.y - halo) // side, min((tile.y + tile.height - 1 + halo) // side, last[0]) + 1)
    across = range(max(0, tile.x - halo) // side, min((tile.x + tile.width - 1 + halo) // side, last[1]) + 1)
    return [(row, column) for row in down for column in across]
