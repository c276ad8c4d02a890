"""The name, id and color of a class, as stored in bundles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassName:
    """One class of the map: id in rasters, name and colour (#rrggbb)."""

    id: int
    name: str
    color: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self.color.removeprefix("#"))
        return red, green, blue
