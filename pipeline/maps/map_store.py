"""Map store: the Zarr group of a scene's map in progress, created up front, filled tile by tile, checked for coverage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from mibf.inference.cell import CELL
from pipeline.grid import Tile, Window, geozarr_attributes
from pipeline.io import storage, zarr_store
from pipeline.maps.predictor import MissingDataPolicy, TileResult, mappable_pixels
from pipeline.maps.products import Product
from pipeline.store.patch_store import PatchStore

#: Side in pixels that a chunk of a tile has at most.
MOST_CHUNK = 1024


class IncompleteMapError(RuntimeError):
    """The map has missing or unexpected pixels; it is not published."""


class MapStore:
    """The Zarr group that tiles are written to; each tile is one shard of each product."""

    def __init__(self, url: str, *, mode: zarr_store.ZarrMode = "r+") -> None:
        self.url = url
        self.group = zarr_store.open_zarr(url, mode=mode)

    @classmethod
    def create(
        cls,
        url: str,
        *,
        store: PatchStore,
        products: Sequence[Product],
        tile: int,
        sources: Sequence[str] | None = None,
    ) -> MapStore:
        """Create the empty arrays of a store's map, replacing whatever is at the URL.

        `sources` are the model's sources in the store's order; default: all sources of the store.
        """
        storage.remove(url)
        work = cls(url, mode="w")
        taken = [source.name for source in store.sources] if sources is None else list(sources)
        work.group.attrs.update(geozarr_attributes(store.grid) | {"mibf:sources": taken})
        rows, columns = store.shape
        # Tiles are written and read whole, and Zarr spends more time on a chunk of one cell than compressing it takes.
        chunk = max(side for side in range(CELL, min(tile, MOST_CHUNK) + 1, CELL) if tile % side == 0)
        for product in products:
            names = product.band_names(store.classes, taken)
            work.group.create_array(
                product.name,
                shape=(len(names), rows, columns),
                chunks=(len(names), chunk, chunk),
                shards=(len(names), tile, tile),
                dtype=product.dtype,
                fill_value=product.nodata,
                dimension_names=("band", "y", "x"),
                attributes={"mibf:bands": names},
            )
        return work

    @property
    def sources(self) -> list[str]:
        """Names of the model's sources."""
        return cast(list[str], self.group.attrs["mibf:sources"])

    def array(self, product: Product) -> zarr.Array[Any]:
        """The codes of a product, (band, y, x)."""
        return self._array(product.name)

    def band_names(self, product: Product) -> list[str]:
        """Names of a product's bands."""
        return cast(list[str], self.array(product).attrs["mibf:bands"])

    def _array(self, name: str) -> zarr.Array[Any]:
        return cast("zarr.Array[Any]", self.group[name])

    def write(self, tile: Tile, result: TileResult) -> None:
        """Write a tile's products. Idempotent: a second write leaves the same bytes.

        Raises:
            ValueError: the tile is not aligned to shards, so a concurrent write to a neighbouring tile could be lost; or a
                layer's dtype differs from the array's, so values could be lost.
        """
        for name, layer in result.items():
            array = self._array(name)
            _, rows, columns = array.shape
            side = cast(tuple[int, int, int], array.shards)[-1]
            window = tile.window
            covers_shard = (window.height == side or window.y + window.height == rows) and (
                window.width == side or window.x + window.width == columns
            )
            if window.y % side or window.x % side or not covers_shard:
                raise ValueError(f"tile {tile.key} is not a whole shard of {side} pixels; writing it could lose pixels")
            if layer.dtype != array.dtype:
                raise ValueError(f"{name} of tile {tile.key} is {layer.dtype}; the map store expects {array.dtype}")
            array[:, *window.slices] = layer


def result_digest(result: TileResult) -> str:
    """Return the checksum of a tile: SHA-256 over each layer's name, dtype, shape and pixels, in order.

    It covers the decoded pixels, so it does not depend on compression and can be recomputed from layers that are read back.
    """
    found = hashlib.sha256()
    for name, layer in result.items():
        little = layer.astype(layer.dtype.newbyteorder("<"), copy=False)
        found.update(f"{name} {little.dtype.str} {'x'.join(map(str, layer.shape))}\n".encode())
        found.update(np.ascontiguousarray(little).data)
    return found.hexdigest()


def check_coverage(
    result: TileResult,
    store: PatchStore,
    window: Window,
    products: Sequence[Product],
    *,
    sources: Sequence[str],
    missing: MissingDataPolicy = "declared",
) -> int:
    """Check that every product covers exactly the pixels of a tile that are to be mapped, and return their number.

    `sources` are the model's. Their product is checked against the pixels where any of them has data, mapped or not.

    Raises:
        IncompleteMapError: pixels are missing or unexpected.
    """
    wanted, mask = mappable_pixels(store, window, sources=sources, missing=missing)
    for product in products:
        wrong = count_coverage_errors(product, result[product.name], wanted=wanted, mask=mask)
        if wrong:
            raise IncompleteMapError(
                f"{wrong} pixels of {product.name} in the tile at y {window.y}, x {window.x} are missing or "
                "unexpected; the map was not published. Run `mibf map --restart` to map every tile again."
            )
    return int(wanted.sum())


def count_coverage_errors(product: Product, codes: NDArray[Any], *, wanted: NDArray[np.bool_], mask: NDArray[Any]) -> int:
    """Count the pixels of a product's codes (band, y, x) that are missing or unexpected.

    `wanted` and `mask` are as returned by `mappable_pixels` for the same window.
    """
    expected = mask != 0 if product.name == "sources" else wanted
    return int((product.present(codes) != expected).any(axis=0).sum())
