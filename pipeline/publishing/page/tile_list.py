"""The list of a map's tiles that failed or are out of date, for the page: of bounded size, whatever the scene's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mibf.redaction import redact
from pipeline.grid import Window
from pipeline.publishing.page.page_file import TILES, PageFile

#: Tiles that are listed, and characters of a cause, at most.
LISTED, CAUSE_LENGTH = 2000, 300
#: Tiles that are worth a look: `retried` ones are done after attempts that failed.
ListedState = Literal["failed", "stale", "pending", "retried"]
_ORDER: tuple[ListedState, ...] = ("failed", "stale", "pending", "retried")


@dataclass(frozen=True)
class ListedTile:
    """A tile that is not simply done."""

    window: Window
    state: ListedState
    attempts: int
    cause: str


def tile_list(tiles: Sequence[ListedTile]) -> PageFile:
    """List tiles as JSON: failed ones first, then those with the most attempts, `LISTED` at most.

    Windows are [row, column, height, width] in pixels of the grid.
    """
    ordered = sorted(tiles, key=lambda tile: (_ORDER.index(tile.state), -tile.attempts, tile.window))
    listed = [
        {
            "window": [tile.window.y, tile.window.x, tile.window.height, tile.window.width],
            "state": tile.state,
            "attempts": tile.attempts,
            "cause": redact(tile.cause)[:CAUSE_LENGTH],
        }
        for tile in ordered[:LISTED]
    ]
    content = json.dumps({"total": len(tiles), "tiles": listed}, ensure_ascii=False)
    return PageFile(TILES, "Tiles that failed before they were done", content.encode())
