"""A scene's map: laid down as Zarr, filled tile by tile, checked for coverage, published as cloud-optimised GeoTIFFs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
import zarr
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from mibf.bundle import ClassName
from mibf.cell import CELL
from mibf.products import ProductName
from pipeline import storage
from pipeline.grid import Window, windows
from pipeline.labels import UNLABELLED
from pipeline.predict import TileResult
from pipeline.store import PatchStore
from pipeline.tiles import Tile


@dataclass(frozen=True)
class Product:
    """One raster of a map: its name, the type and nodata value of its pixels, how its overviews are made, its bands."""

    name: ProductName
    dtype: str
    nodata: float
    overviews: str
    predictor: int
    bands: Literal["one", "classes", "sources"] = "one"

    def band_names(self, classes: Sequence[ClassName], sources: Sequence[str]) -> list[str]:
        """What each of its bands is of: the product itself, a class or a source."""
        if self.bands == "classes":
            return [c.name for c in classes]
        return list(sources) if self.bands == "sources" else [self.name]


def _continuous(name: ProductName, bands: Literal["one", "classes", "sources"] = "one") -> Product:
    return Product(name, "float32", float("nan"), "average", 3, bands)


CLASS = Product("class", "uint8", UNLABELLED, "mode", 2)
PRODUCTS: dict[str, Product] = {
    product.name: product
    for product in (
        CLASS,
        _continuous("confidence"),
        _continuous("probabilities", "classes"),
        _continuous("entropy"),
        _continuous("information"),
        _continuous("rate"),
        _continuous("gate", "sources"),
    )
}


class IncompleteMapError(RuntimeError):
    """A map has pixels that should have been mapped and are not, or the reverse; it is not published."""


class MapInWork:
    """The Zarr group that tiles are written into; each tile is one shard of each product."""

    def __init__(self, url: str, *, mode: storage.ZarrMode = "r+") -> None:
        self.url = url
        self.group = storage.open_zarr(url, mode=mode)

    @classmethod
    def lay_down(cls, url: str, *, store: PatchStore, products: Sequence[Product], tile: int) -> MapInWork:
        """Lay the template of a store's map down; whatever was at the URL is gone afterwards."""
        storage.remove(url)
        work = cls(url, mode="w")
        rows, columns = store.shape
        for product in products:
            names = product.band_names(store.classes, [source.name for source in store.sources])
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

    def array(self, product: Product) -> zarr.Array[Any]:
        """The pixels of a product, (band, y, x)."""
        return cast("zarr.Array[Any]", self.group[product.name])

    def write(self, tile: Tile, result: TileResult) -> None:
        """Write a tile's products; writing it twice leaves the same bytes.

        Raises:
            ValueError: the tile is not whole shards, and a neighbour's write could be lost.
        """
        for name, layer in result.items():
            array = self.array(PRODUCTS[name])
            _, rows, columns = array.shape
            side = cast(tuple[int, int, int], array.shards)[-1]
            window = tile.window
            whole = (window.height == side or window.y + window.height == rows) and (
                window.width == side or window.x + window.width == columns
            )
            if window.y % side or window.x % side or not whole:
                raise ValueError(f"tile {tile.key} is not a whole shard of {side} pixels; writing it could lose pixels")
            array[:, *window.slices] = layer


def check_coverage(work: MapInWork, store: PatchStore, products: Sequence[Product], *, tile: int) -> int:
    """Count the mapped pixels, having seen that they are just the ones to be mapped in every product.

    Raises:
        IncompleteMapError: names the first tile that is not as it should be.
    """
    mapped = 0
    for window in windows(store.shape, tile):
        usable = store.usable(window)
        for product in products:
            values = np.asarray(work.array(product)[:, *window.slices])
            present = np.isfinite(values).all(axis=0) if np.isnan(product.nodata) else values[0] != product.nodata
            wrong = int((present != usable).sum())
            if wrong:
                raise IncompleteMapError(
                    f"{wrong} pixels of {product.name} in the tile at y {window.y}, x {window.x} are missing or "
                    "should not be there; the map is not published. Run `mibf map` again."
                )
        mapped += int(usable.sum())
    return mapped


def publish_product(
    work: MapInWork,
    product: Product,
    url: str,
    *,
    grid: GeoBox,
    classes: Sequence[ClassName],
    tags: dict[str, str],
) -> None:
    """Write one product as a cloud-optimised GeoTIFF at a URL, validated before it is published.

    Memory is bounded by GDAL's cache: pixels go window by window into a temporary file first.
    """
    array = work.array(product)
    bands, rows, columns = array.shape
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": rows,
        "width": columns,
        "count": bands,
        "dtype": product.dtype,
        "nodata": product.nodata,
        "transform": grid.affine,
        "crs": None if grid.crs is None else grid.crs.to_wkt(),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    with tempfile.TemporaryDirectory(prefix="mibf-") as folder:
        plain, cog = Path(folder) / "plain.tif", Path(folder) / "cog.tif"
        with rasterio.open(plain, "w", **profile) as target:
            target.update_tags(**tags)
            for band, name in enumerate(cast(list[str], array.attrs["mibf:bands"]), start=1):
                target.set_band_description(band, name)
            if product is CLASS:
                target.write_colormap(1, color_table(classes))
                target.update_tags(1, **{f"class_{c.id}": c.name for c in classes})
            for window in windows((rows, columns), 512):
                target.write(np.asarray(array[:, *window.slices]), window=_rasterio_window(window))
        rasterio.shutil.copy(
            plain,
            cog,
            driver="COG",
            compress="deflate",
            predictor=product.predictor,
            blocksize=512,
            overviews="auto",
            overview_resampling=product.overviews,
            bigtiff="if_safer",
            num_threads="all_cpus",
        )
        valid, errors, _ = cog_validate(cog, strict=True, quiet=True)
        if not valid:
            raise RuntimeError(f"{url}: not a valid cloud-optimised GeoTIFF: {'; '.join(errors)}")
        if product is CLASS:
            storage.write_bytes(f"{url}.aux.xml", category_names(classes).encode())
        storage.publish(str(cog), url)


def _rasterio_window(window: Window) -> rasterio.windows.Window:
    return rasterio.windows.Window(window.x, window.y, window.width, window.height)


def color_table(classes: Sequence[ClassName]) -> dict[int, tuple[int, int, int, int]]:
    """The colour of each class id as red, green, blue and alpha from 0 to 255; all others are transparent."""
    colors = {c.id: (*bytes.fromhex(c.color.removeprefix("#")), 255) for c in classes}
    return dict.fromkeys(range(256), (0, 0, 0, 0)) | colors


def category_names(classes: Sequence[ClassName]) -> str:
    """The class names as GDAL reads them from the file beside a raster: a GeoTIFF has no place for them."""
    names = {c.id: c.name for c in classes}
    categories = "".join(f"<Category>{escape(names.get(i, ''))}</Category>" for i in range(max(names) + 1))
    return f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{categories}</CategoryNames></PAMRasterBand></PAMDataset>\n'
