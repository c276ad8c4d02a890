"""Tiles: the squares of the reference grid that one task maps. Values only; no arrays, no files."""

from __future__ import annotations

from dataclasses import dataclass

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


def tiles(scene: str, shape_yx: tuple[int, int], side: int) -> list[Tile]:
    """The tiles of a scene, row by row."""
    return [Tile(scene, window) for window in windows(shape_yx, side)]
