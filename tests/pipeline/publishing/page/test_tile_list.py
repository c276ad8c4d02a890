"""The list of tiles of a page is small, worst first, and has no credentials."""

from __future__ import annotations

import json

from pipeline.grid import Window
from pipeline.publishing.page.tile_list import LISTED, ListedTile, tile_list


def test_failed_tiles_come_first_and_the_list_is_bounded() -> None:
    tiles = [ListedTile(Window(0, 64 * n, 64, 64), "retried", 1 + n % 3, "") for n in range(LISTED + 500)]
    tiles.append(ListedTile(Window(64, 0, 64, 64), "failed", 1, "s3://key:secret@bucket/x.tif: " + "y" * 1000))
    found = json.loads(tile_list(tiles).content)
    assert found["total"] == LISTED + 501
    assert len(found["tiles"]) == LISTED
    first, second = found["tiles"][:2]
    assert (first["window"], first["state"]) == ([64, 0, 64, 64], "failed")
    assert "secret" not in first["cause"]
    assert (second["state"], second["attempts"]) == ("retried", 3)
    assert len(tile_list(tiles).content) < 500 * LISTED
