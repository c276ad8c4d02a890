"""Encoded tiles of one part of a raster, of all products, stored as one object until the files are assembled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.geotiff.tile_codec import encode_tile
from pipeline.geotiff.tile_pyramid import Codes, TileKey
from pipeline.io import storage
from pipeline.io.retry import call_with_retry
from pipeline.maps.products import Product


@dataclass(frozen=True)
class ProductTiles:
    """The encoded tiles of one product in an object."""

    start: int  #: offset of the first tile
    sizes: NDArray[np.int64]  #: bytes (tile, band); tiles follow each other, the bands of a tile one after the other
    halved_start: int  #: offset of the part's coarsest tile at half its resolution, as it is in memory
    halved_shape: tuple[int, int, int]  #: (band, y, x)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each tile begins, (tile, band)."""
        ends = self.start + np.cumsum(self.sizes.ravel())
        return np.asarray(ends.reshape(self.sizes.shape) - self.sizes)


@dataclass(frozen=True)
class EncodedPart:
    """The tiles that were built below one tile of a raster, that one included."""

    url: str
    root: TileKey
    keys: tuple[TileKey, ...]  #: in the order in which they are stored
    products: tuple[ProductTiles, ...]  #: in the order of the map's products

    def halved(self, number: int, product: Product) -> NDArray[Any]:
        """The coarsest tile of the product with this number, at half its resolution: codes (band, y, x)."""
        found = self.products[number]
        size = int(np.prod(found.halved_shape)) * np.dtype(product.dtype).itemsize
        content = read_range(self.url, found.halved_start, size)
        return np.frombuffer(content, product.dtype).reshape(found.halved_shape)


class TileEncoder:
    """Encodes tiles as they are built."""

    def __init__(self, products: Sequence[Product]) -> None:
        self.products = products
        self.tiles: dict[TileKey, list[list[bytes]]] = {}  #: by product, by band

    def emit(self, key: TileKey, codes: Codes) -> None:
        """Encode a tile of every product."""
        self.tiles[key] = [encode_tile(codes[product.name], product) for product in self.products]

    @property
    def bytes(self) -> int:
        """Size of all tiles."""
        return sum(len(band) for tile in self.tiles.values() for bands in tile for band in bands)

    def write(self, url: str, root: TileKey, halved: Codes) -> EncodedPart:
        """Write the tiles to a URL, each level's row by row, so that those that follow each other in a file do so here."""
        keys = sorted(self.tiles)
        content, place, products = list[bytes](), 0, list[ProductTiles]()
        for number, product in enumerate(self.products):
            tiles = [self.tiles[key][number] for key in keys]
            sizes = np.array([[len(band) for band in tile] for tile in tiles], np.int64)
            coarse = np.ascontiguousarray(halved[product.name])
            content += [*(band for tile in tiles for band in tile), coarse.tobytes()]
            products.append(ProductTiles(place, sizes, place + int(sizes.sum()), coarse.shape))
            place += int(sizes.sum()) + coarse.nbytes
        whole = b"".join(content)
        call_with_retry(url, lambda: storage.write_bytes(url, whole))
        return EncodedPart(url, root, tuple(keys), tuple(products))


def read_range(url: str, start: int, size: int) -> bytes:
    """Read `size` bytes of an object.

    Raises:
        OSError: it is shorter.
    """

    def read() -> bytes:
        filesystem, path = storage.open_url(url)
        content = bytes(filesystem.cat_file(path, start=start, end=start + size))
        if len(content) != size:
            raise OSError(f"{url}: has {len(content)} bytes from {start}, not {size}")
        return content

    return call_with_retry(url, read)
