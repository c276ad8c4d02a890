"""The tiles of a raster and of its overviews as a tree: each tile of a level covers up to 2 x 2 tiles of the finer one.

An overview tile depends on the tiles below it alone. So any part of the tree can be built apart from the rest, and where a
few tiles have changed, only these and the tiles above them are built again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geotiff.tile_codec import TILE, halve
from pipeline.grid import Window
from pipeline.maps.products import Product

#: Codes (band, y, x) of the same pixels, by product name.
Codes = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, order=True)
class TileKey:
    """One tile of a raster: level 0 is the full resolution; row and column count tiles."""

    level: int
    row: int
    column: int

    @property
    def parent(self) -> TileKey:
        """The tile of the next coarser level that covers this one."""
        return TileKey(self.level + 1, self.row // 2, self.column // 2)

    def ancestor(self, level: int) -> TileKey:
        """The tile of a coarser level, or this one, that covers this one."""
        shift = level - self.level
        return TileKey(level, self.row >> shift, self.column >> shift)


@dataclass(frozen=True)
class TileTree:
    """The tiles of a raster of `shape_yx` pixels and of its overviews, down to one tile."""

    shape_yx: tuple[int, int]

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of each level in pixels, the full resolution first."""
        found = [self.shape_yx]
        while max(found[-1]) > TILE:
            rows, columns = found[-1]
            found.append((-(-rows // 2), -(-columns // 2)))
        return found

    def tile_counts(self, level: int) -> tuple[int, int]:
        """Rows and columns of tiles of a level."""
        rows, columns = self.shapes[level]
        return -(-rows // TILE), -(-columns // TILE)

    def tiles(self, level: int) -> list[TileKey]:
        """The tiles of a level, row by row."""
        rows, columns = self.tile_counts(level)
        return [TileKey(level, row, column) for row in range(rows) for column in range(columns)]

    def window(self, key: TileKey) -> Window:
        """The pixels of a tile, in its level."""
        rows, columns = self.shapes[key.level]
        y, x = key.row * TILE, key.column * TILE
        return Window(y, x, min(TILE, rows - y), min(TILE, columns - x))

    def children(self, key: TileKey) -> list[TileKey]:
        """The tiles of the next finer level that a tile covers: four, or fewer at the far edges."""
        rows, columns = self.tile_counts(key.level - 1)
        return [
            TileKey(key.level - 1, row, column)
            for row in range(2 * key.row, min(2 * key.row + 2, rows))
            for column in range(2 * key.column, min(2 * key.column + 2, columns))
        ]

    def with_ancestors(self, keys: Iterable[TileKey]) -> frozenset[TileKey]:
        """Tiles, and all that are above them."""
        levels, found, front = len(self.shapes), set[TileKey](), set(keys)
        while front:
            found |= front
            front = {key.parent for key in front if key.level + 1 < levels} - found
        return frozenset(found)


@dataclass(frozen=True)
class TreeBuilder:
    """Builds the tiles of one part of a tree, those that have changed.

    `read` returns the codes of a changed tile of the finest level, or None where `halved` has what is above it. `kept`
    returns the codes of a tile that has not changed. `emit` takes each tile that was built, finer ones first.
    """

    tree: TileTree
    products: Sequence[Product]
    changed: frozenset[TileKey]
    read: Callable[[TileKey], Codes]
    kept: Callable[[TileKey], Codes]
    emit: Callable[[TileKey, Codes], None]
    #: Tiles that were built elsewhere, at half their resolution; nothing below them is built.
    built: Mapping[TileKey, Codes]

    def build(self, root: TileKey) -> Codes:
        """Build the changed tiles from a tile downwards; return that tile at half its resolution."""
        if root in self.built:
            return self.built[root]
        codes = self.read(root) if root.level == 0 else self._from_children(root)
        self.emit(root, codes)
        return self._halved(codes)

    def _from_children(self, key: TileKey) -> Codes:
        """The codes of an overview tile: of the tile that is kept, only the quarters of changed tiles are replaced."""
        window, half, children = self.tree.window(key), TILE // 2, self.tree.children(key)
        shape_yx = window.height, window.width
        quarters = {child: self.build(child) for child in children if child in self.changed}
        before = None if len(quarters) == len(children) else self.kept(key)
        found: dict[str, NDArray[Any]] = {}
        for product in self.products:
            bands = len(next(iter(quarters.values()))[product.name])
            codes = np.empty((bands, *shape_yx), product.dtype) if before is None else before[product.name].copy()
            for child, quarter in quarters.items():
                y, x = half * (child.row % 2), half * (child.column % 2)
                _, rows, columns = quarter[product.name].shape
                codes[:, y : y + rows, x : x + columns] = quarter[product.name]
            found[product.name] = codes
        return found

    def _halved(self, codes: Codes) -> Codes:
        return {product.name: halve(codes[product.name], product) for product in self.products}
