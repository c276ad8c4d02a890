"""What a tile's pixels depend on, as a fingerprint of three parts: the model, the settings and code, the input shards.

A tile reads its window and a halo around it. Its inputs are therefore the shards that these touch, told by the checksums
of what `prepare` wrote: when one shard changes, just the tiles that reach into it are stale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from mibf.errors import InputError
from pipeline.fill import Records
from pipeline.grid import Window

#: The parts in their order, as people are told of them.
PARTS = ("the model", "the settings or the version of mibf", "the input")
_DIGITS = 12


def fingerprints(
    tiles: Sequence[Window], records: Records, *, model: str, settings: str, sources: Collection[str], halo: int, side: int
) -> dict[Window, str]:
    """The fingerprint of each tile of a scene.

    Args:
        tiles: their windows, which cover the scene.
        records: what was written of the scene's store.
        model: digest of the model.
        settings: digest of all else that is the same for every tile.
        sources: those that are read, for their values or for where they have data.
        halo: pixels around a tile that are read too.
        side: of the store's shards.

    Raises:
        InputError: the records lack a shard that a tile reads.
    """
    of_shard = {}
    for shard in records.shards:
        taken = sorted((key, digest) for key, (_, digest) in shard.objects.items() if _is_read(key, sources))
        of_shard[shard.window.y // side, shard.window.x // side] = hashlib.sha256(repr(taken).encode()).hexdigest()
    # Beyond the scene there are no shards; where it ends its tiles tell, the records may lack some.
    last = max(tile.y + tile.height - 1 for tile in tiles) // side, max(tile.x + tile.width - 1 for tile in tiles) // side
    found = {}
    for tile in tiles:
        try:
            read = "".join(of_shard[place] for place in _shards(tile, halo, side, last))
        except KeyError as error:
            raise InputError(
                f"the records of the store lack the shard in row {error.args[0][0]}, column {error.args[0][1]}; run "
                "`mibf prepare` again."
            ) from error
        inputs = hashlib.sha256(read.encode()).hexdigest()
        found[tile] = ".".join(part[:_DIGITS] for part in (model, settings, inputs))
    return found


def difference(before: str, now: str) -> str:
    """Which parts of a fingerprint are not what they were, in words."""
    pairs = list(zip(before.split("."), now.split("."), strict=False))
    if len(pairs) != len(PARTS):
        return "what it was made of"
    return " and ".join(name for name, (one, other) in zip(PARTS, pairs, strict=True) if one != other)


def _is_read(key: str, sources: Collection[str]) -> bool:
    kind, _, rest = key.partition("/")
    return kind in ("sources", "valid") and rest.split("/c/")[0] in sources


def _shards(tile: Window, halo: int, side: int, last: tuple[int, int]) -> list[tuple[int, int]]:
    """The shards that a tile and its halo reach into, by row and column, up to the scene's last ones."""
    down = range(max(0, tile.y - halo) // side, min((tile.y + tile.height - 1 + halo) // side, last[0]) + 1)
    across = range(max(0, tile.x - halo) // side, min((tile.x + tile.width - 1 + halo) // side, last[1]) + 1)
    return [(row, column) for row in down for column in across]
