"""Tiles: the squares of the reference grid that one task maps. Values only; no arrays, no files."""

from __future__ import annotations

from dataclasses import dataclass

from mibf.dense import CELL
from pipeline.grid import Window, windows


@dataclass(frozen=True, order=True)
class Tile:
    """A tile's identity: equal across retries and machines."""

    scene: str
    window: Window

    @property
    def key(self) -> str:
        """A name for messages and records."""
        return f"{self.scene}/y{self.window.y}_x{self.window.x}"

    def cells(self) -> list[Window]:
        """The whole cells that cover the tile; those at the grid's far edges reach beyond it."""
        return [
            Window(y, x, CELL, CELL)
            for y in range(self.window.y, self.window.y + self.window.height, CELL)
            for x in range(self.window.x, self.window.x + self.window.width, CELL)
        ]


def tiles(scene: str, shape_yx: tuple[int, int], side: int) -> list[Tile]:
    """The tiles of a scene, row by row."""
    return [Tile(scene, window) for window in windows(shape_yx, side)]
