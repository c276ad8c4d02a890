"""Build one part of a map: read its tiles once, check them, and encode those of all its files.

Parts are independent, so they can be built on any machine that sees the map store and the staging folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.geotiff.cog import rasterio_window
from pipeline.geotiff.encoded_tiles import EncodedPart, TileEncoder
from pipeline.geotiff.tile_codec import TILE
from pipeline.geotiff.tile_pyramid import Codes, TileKey, TileTree, TreeBuilder
from pipeline.grid import Window
from pipeline.io import gdal, storage
from pipeline.io.retry import call_with_retry
from pipeline.maps.map_store import IncompleteMapError, MapStore, check_coverage, result_digest
from pipeline.maps.predictor import MissingDataPolicy, TileResult
from pipeline.maps.products import Product
from pipeline.publishing.publish import check_disk_space
from pipeline.publishing.published_map import PublishedMap
from pipeline.rasters.untrusted import open_published
from pipeline.store.patch_store import PatchStore

#: Side of a part in pixels, at most; and bytes of all products of a part: with more bands parts are smaller.
PART, PART_BYTES = 4096, 512 * 2**20


@dataclass(frozen=True)
class SourceTile:
    """A tile of the map, as it must be published."""

    window: Window
    checksum: str
    published: bool  #: it is in the published map, unless that is damaged; otherwise in the map store


@dataclass(frozen=True)
class MapSource:
    """Where the pixels of a map are."""

    store: str  #: URL of the scene's patch store
    work: str  #: URL of the map store
    published: str  #: folder of the published map
    staging: str  #: folder for what is built
    products: tuple[Product, ...]
    tile_size: int
    missing: MissingDataPolicy  #: which pixels were to be mapped


@dataclass(frozen=True)
class Part:
    """A part of a file of each product: the tiles to build below one tile of the tree."""

    file: Window  #: the part of the grid that the files cover
    suffix: str  #: what the files' names add to the product
    root: TileKey
    changed: frozenset[TileKey]  #: tiles of the finest level to build
    sources: tuple[SourceTile, ...]  #: tiles of the map that these overlap


def part_level(products: Sequence[Product], bands: Sequence[int], tile_size: int) -> int:
    """Level of the tiles that cover one part each: parts are as large as `PART` and `PART_BYTES` allow.

    They are at least as large as the map's tiles, which would otherwise be read more than once.
    """
    pixel = sum(np.dtype(product.dtype).itemsize * count for product, count in zip(products, bands, strict=True))
    side = PART
    while side > TILE and side * side * pixel > PART_BYTES:
        side //= 2
    while side < tile_size:
        side *= 2
    return (side // TILE).bit_length() - 1


def encode_part(source: MapSource, part: Part) -> EncodedPart | tuple[Window, ...]:
    """Build a part and write it to the staging folder; return what was written, or the tiles that are damaged.

    Raises:
        IncompleteMapError: a product has a value where none is to be mapped, or none where one is.
        PublishError: the disk is full.
        StorageUnavailableError: the object store does not respond.
    """
    gdal.configure_gdal()
    tiles, encoder = _Tiles(source, part), TileEncoder(source.products)
    changed = tiles.tree.with_ancestors(part.changed)
    builder = TreeBuilder(tiles.tree, source.products, changed, tiles.codes, tiles.kept, encoder.emit, {})
    halved = builder.build(part.root)
    if tiles.damaged:
        return tuple(tiles.damaged)
    name = f"part{part.suffix}-{part.root.level}-{part.root.row}-{part.root.column}.tiles"
    url = storage.join(source.staging, name)
    if not storage.is_local(url):
        return encoder.write(url, part.root, halved)
    with check_disk_space(Path(storage.local_path(source.staging)), name, needed=encoder.bytes):
        return encoder.write(url, part.root, halved)


@lru_cache(maxsize=4)
def _open_stores(store: str, work: str, staging: str) -> tuple[PatchStore, MapStore]:
    """Open the stores of a map once for all parts that a process builds; another run has another staging folder."""
    del staging
    return PatchStore(store), MapStore(work, mode="r")


class _Tiles:
    """The tiles of a map that a part needs."""

    def __init__(self, source: MapSource, part: Part) -> None:
        self.source, self.part = source, part
        self.tree = TileTree((part.file.height, part.file.width))
        self.damaged: list[Window] = []
        self._map = PublishedMap(source.published)
        self._store, self._work = call_with_retry(
            source.work, lambda: _open_stores(source.store, source.work, source.staging)
        )
        # A tile of the files reads each tile of the map once, unless they are not aligned.
        aligned = TILE % source.tile_size == 0 or source.tile_size % TILE == 0
        self._read = lru_cache(maxsize=1 if aligned else 8)(self._checked)

    def codes(self, key: TileKey) -> Codes:
        """The codes of a tile of the finest level, from the tiles of the map that it overlaps."""
        window, file = self.tree.window(key), self.part.file
        y, x = file.y + window.y, file.x + window.x
        found: dict[str, NDArray[Any]] = {}
        for tile in self._overlapping(y, x, window):
            top, left = max(y, tile.window.y), max(x, tile.window.x)
            bottom = min(y + window.height, tile.window.y + tile.window.height)
            right = min(x + window.width, tile.window.x + tile.window.width)
            result = self._read(tile)
            for product in self.source.products:
                layer = result[product.name]
                if product.name not in found:
                    found[product.name] = np.full((len(layer), window.height, window.width), product.nodata, product.dtype)
                rows, columns = (
                    slice(top - tile.window.y, bottom - tile.window.y),
                    slice(left - tile.window.x, right - tile.window.x),
                )
                found[product.name][:, top - y : bottom - y, left - x : right - x] = layer[:, rows, columns]
        return found

    def _overlapping(self, y: int, x: int, window: Window) -> list[SourceTile]:
        return [
            tile
            for tile in self.part.sources
            if tile.window.y < y + window.height
            and y < tile.window.y + tile.window.height
            and tile.window.x < x + window.width
            and x < tile.window.x + tile.window.width
        ]

    def kept(self, key: TileKey) -> Codes:
        """The codes of a tile of any level that has not changed, from the published files."""
        window = rasterio_window(self.tree.window(key))

        def read(product: Product) -> NDArray[Any]:
            url = storage.join(self.source.published, f"{product.name}{self.part.suffix}.tif")
            with open_published(url, overview_level=key.level - 1 if key.level else None) as dataset:
                return np.asarray(dataset.read(window=window))

        return {p.name: call_with_retry(self.source.published, partial(read, p)) for p in self.source.products}

    def _checked(self, tile: SourceTile) -> TileResult:
        """Read a tile of the map and check its pixels; a damaged one is noted, and is without values here."""
        result = self._intact(tile)
        if result is None:
            if tile.window not in self.damaged:
                self.damaged.append(tile.window)
            return {
                product.name: np.full((self._bands(product), tile.window.height, tile.window.width), product.nodata)
                for product in self.source.products
            }
        incomplete = call_with_retry(self._store.url, lambda: self._incomplete(tile, result))
        if incomplete is not None:
            raise incomplete
        return result

    def _incomplete(self, tile: SourceTile, result: TileResult) -> IncompleteMapError | None:
        """What is wrong with a tile's coverage. It is returned, because what is raised would be tried again."""
        sources, missing = self._work.sources, self.source.missing
        try:
            check_coverage(result, self._store, tile.window, self.source.products, sources=sources, missing=missing)
        except IncompleteMapError as error:
            return error
        return None

    def _bands(self, product: Product) -> int:
        return len(self._work.band_names(product))

    def _intact(self, tile: SourceTile) -> TileResult | None:
        """The codes of a tile of the map; None if they are damaged. Of a published one, the map store may have a copy."""
        for published in (True, False) if tile.published else (False,):
            result = self._result(tile, published=published)
            if result is not None and result_digest(result) == tile.checksum:
                return result
        return None

    def _result(self, tile: SourceTile, *, published: bool) -> TileResult | None:
        """The codes of a tile in the published map or in the map store; None if they cannot be decoded."""

        def read() -> TileResult | None:
            try:
                if published:
                    return {p.name: self._map.read(p, tile.window) for p in self.source.products}
                return {p.name: np.asarray(self._work.array(p)[:, *tile.window.slices]) for p in self.source.products}
            except (InputError, ValueError, RuntimeError):  # another product, a truncated shard
                return None

        try:
            return call_with_retry(self.source.work, read)
        except OSError:
            return None
