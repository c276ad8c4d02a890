"""Maps to publish: a patch store of 700 x 600 pixels, and map stores of chosen codes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from mibf.bundle.classes import ClassName
from pipeline.grid import Tile, Window, windows
from pipeline.maps.map_store import MapStore, result_digest
from pipeline.maps.products import MapProductName, Product, product
from pipeline.publishing.map_file import FileContent, MapFiles
from pipeline.publishing.map_part import MapSource, SourceTile
from pipeline.publishing.publish_map import Publication
from pipeline.rasters.header import RasterFile
from pipeline.scenes.source import Source
from pipeline.store.patch_store import PatchStore
from tests.support.maps import build_small_store
from tests.support.scenes import CRS, TRANSFORM

ROWS, COLUMNS, TILE = 700, 600, 256
CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"))


def build_store(folder: Path) -> PatchStore:
    """Build the patch store of a scene with data everywhere."""
    profile = {"driver": "GTiff", "height": ROWS, "width": COLUMNS, "count": 1, "dtype": "uint8", "crs": CRS}
    with rasterio.open(folder / "source.tif", "w", **profile, transform=TRANSFORM) as target:
        target.write(np.ones((1, ROWS, COLUMNS), np.uint8))
    return build_small_store(folder, [Source("optical", ((RasterFile(str(folder / "source.tif")),),))])


def codes_of(layer: Product, seed: int) -> NDArray[Any]:
    """Random codes of a whole map, (band, y, x)."""
    return np.random.default_rng(seed).integers(1, 3, (1, ROWS, COLUMNS)).astype(layer.dtype)


def write_work(store: PatchStore, folder: Path, layers: dict[str, NDArray[Any]]) -> list[SourceTile]:
    """Write the map store of these codes and return its tiles."""
    products = [product(name) for name in layers]  # type: ignore[arg-type]  # names of products
    work = MapStore.create(str(folder / "map.zarr"), store=store, products=products, tile=TILE)
    tiles = []
    for window in windows((ROWS, COLUMNS), TILE):
        result = {name: codes[:, *window.slices] for name, codes in layers.items()}
        work.write(Tile("small", window), result)
        tiles.append(SourceTile(window, result_digest(result), published=False))
    return tiles


def random_layers(names: Sequence[MapProductName], seed: int) -> dict[str, NDArray[Any]]:
    """Random codes of products."""
    return {name: codes_of(product(name), seed) for name in names}


def make_publication(
    store: PatchStore,
    work: Path,
    folder: str,
    names: Sequence[MapProductName],
    tiles: Sequence[SourceTile],
    *,
    block: int = 1024,
    published: dict[str, FileContent] | None = None,
    tags: dict[str, str] | None = None,
) -> Publication:
    """Describe the publication of a map store."""
    products = tuple(product(name) for name in names)
    source = MapSource(store.url, str(work / "map.zarr"), folder, "", products, TILE, "declared")
    bands = tuple(tuple(each.band_names(CLASSES, ["optical"])) for each in products)
    files = MapFiles(folder, "", store.grid, products, bands, CLASSES, ("optical",), tags or {"mibf_run": "main"})
    return Publication(source, files, block, tiles, published or {})


def unchanged(tiles: Sequence[SourceTile], changed: Collection[Window]) -> list[SourceTile]:
    """Tiles of which all but some are to be read from the published map."""
    return [SourceTile(tile.window, tile.checksum, tile.window not in changed) for tile in tiles]
