"""A scene's map in work: laid down as Zarr, filled tile by tile, checked for coverage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from mibf.cell import CELL
from pipeline import storage
from pipeline.grid import windows
from pipeline.predict import MissingChoice, TileResult, to_map
from pipeline.products import Product
from pipeline.store import PatchStore
from pipeline.tiles import Tile


class IncompleteMapError(RuntimeError):
    """A map has pixels that should have been mapped and are not, or the reverse; it is not published."""


class MapInWork:
    """The Zarr group that tiles are written into; each tile is one shard of each product."""

    def __init__(self, url: str, *, mode: storage.ZarrMode = "r+") -> None:
        self.url = url
        self.group = storage.open_zarr(url, mode=mode)

    @classmethod
    def lay_down(
        cls,
        url: str,
        *,
        store: PatchStore,
        products: Sequence[Product],
        tile: int,
        sources: Sequence[str] | None = None,
    ) -> MapInWork:
        """Lay the template of a store's map down; whatever was at the URL is gone afterwards.

        `sources` are those that the model takes, in the store's order; all of the store's unless given.
        """
        storage.remove(url)
        work = cls(url, mode="w")
        taken = [source.name for source in store.sources] if sources is None else list(sources)
        work.group.attrs["mibf:sources"] = taken
        rows, columns = store.shape
        for product in products:
            names = product.band_names(store.classes, taken)
            work.group.create_array(
                product.name,
                shape=(len(names), rows, columns),
                chunks=(len(names), CELL, CELL),
                shards=(len(names), tile, tile),
                dtype=product.dtype,
                fill_value=product.nodata,
                dimension_names=("band", "y", "x"),
                attributes={"mibf:bands": names},
            )
        return work

    @property
    def sources(self) -> list[str]:
        """The names of the sources that the model takes."""
        return cast(list[str], self.group.attrs["mibf:sources"])

    def array(self, product: Product) -> zarr.Array[Any]:
        """The pixels of a product as codes, (band, y, x)."""
        return self._array(product.name)

    def band_names(self, product: Product) -> list[str]:
        """What each band of a product is of."""
        return cast(list[str], self.array(product).attrs["mibf:bands"])

    def _array(self, name: str) -> zarr.Array[Any]:
        return cast("zarr.Array[Any]", self.group[name])

    def write(self, tile: Tile, result: TileResult) -> None:
        """Write a tile's products; writing it twice leaves the same bytes.

        Raises:
            ValueError: the tile is not whole shards, and a neighbour's write could be lost; or a layer is not of the type
                that was laid down, and its values would be lost.
        """
        for name, layer in result.items():
            array = self._array(name)
            _, rows, columns = array.shape
            side = cast(tuple[int, int, int], array.shards)[-1]
            window = tile.window
            whole = (window.height == side or window.y + window.height == rows) and (
                window.width == side or window.x + window.width == columns
            )
            if window.y % side or window.x % side or not whole:
                raise ValueError(f"tile {tile.key} is not a whole shard of {side} pixels; writing it could lose pixels")
            if layer.dtype != array.dtype:
                raise ValueError(f"{name} of tile {tile.key} is {layer.dtype}; the map was laid down for {array.dtype}")
            array[:, *window.slices] = layer


def digest(result: TileResult) -> str:
    """The checksum of a tile: SHA-256 over each layer's name, type, shape and pixels, in the order in which they are.

    It is of the pixels, however they are compressed: layers that are read back have the same.
    """
    found = hashlib.sha256()
    for name, layer in result.items():
        little = layer.astype(layer.dtype.newbyteorder("<"), copy=False)
        found.update(f"{name} {little.dtype.str} {'x'.join(map(str, layer.shape))}\n".encode())
        found.update(np.ascontiguousarray(little).data)
    return found.hexdigest()


def check_coverage(
    work: MapInWork, store: PatchStore, products: Sequence[Product], *, tile: int, missing: MissingChoice = "declared"
) -> int:
    """Count the mapped pixels, having seen that they are just the ones to be mapped in every product.

    `sources` is there wherever a source that the model takes has data, mapped or not.

    Raises:
        IncompleteMapError: names the first tile that is not as it should be.
    """
    mapped = 0
    for window in windows(store.shape, tile):
        wanted, mask = to_map(store, window, sources=work.sources, missing=missing)
        for product in products:
            wrong = misplaced(product, np.asarray(work.array(product)[:, *window.slices]), wanted=wanted, mask=mask)
            if wrong:
                raise IncompleteMapError(
                    f"{wrong} pixels of {product.name} in the tile at y {window.y}, x {window.x} are missing or "
                    "should not be there; the map is not published. `mibf map --anew` maps every tile again."
                )
        mapped += int(wanted.sum())
    return mapped


def misplaced(product: Product, codes: NDArray[Any], *, wanted: NDArray[np.bool_], mask: NDArray[Any]) -> int:
    """How many pixels of a product's codes (band, y, x) are missing or should not be there.

    `wanted` and `mask` are those of `to_map`, of the codes' window.
    """
    expected = mask != 0 if product.name == "sources" else wanted
    return int((product.present(codes) != expected).any(axis=0).sum())
