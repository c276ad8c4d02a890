"""Published maps with pages, on any grid, of chosen codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from pipeline.grid import Tile, Window, windows
from pipeline.io.lease import Lease
from pipeline.maps.map_store import MapStore, result_digest
from pipeline.maps.products import product
from pipeline.parallel.executor import ThreadExecutor
from pipeline.publishing.map_file import MapFiles
from pipeline.publishing.map_part import MapSource, SourceTile
from pipeline.publishing.page.tile_list import ListedTile, tile_list
from pipeline.publishing.publish_map import Publication, publish_map
from pipeline.publishing.stac_item import Asset, ModelLink, map_item
from pipeline.rasters.header import RasterFile
from pipeline.scenes.source import Source
from tests.support.maps import build_small_store

TILE = 256
#: Ground, and three classes of one small square each. Names are text that no page may take for HTML.
CLASSES = (
    ClassName(1, "ground <b>&amp;", "#c8c8c8"),
    ClassName(2, "north", "#ff0000"),
    ClassName(3, "east", "#00a000"),
    ClassName(7, "Südwest ©", "#0000ff"),
)
SHAPE = (700, 600)
#: Offsets of the squares' centres from the grid's centre in pixels of the CRS: to the east and to the north.
MARKERS = {2: (0, 150), 3: (150, 0), 7: (-120, -120)}
#: Side of the squares in pixels.
SQUARE = 30
GRIDS = {
    "utm": GeoBox(SHAPE, Affine(10, 0, 500_000, 0, -10, 5_800_000), "EPSG:32633"),
    "geographic": GeoBox(SHAPE, Affine(0.001, 0, 10, 0, -0.001, 50), "EPSG:4326"),
    "rotated": GeoBox(
        SHAPE, Affine.translation(500_000, 5_800_000) * Affine.rotation(-30) * Affine.scale(10, -10), "EPSG:32633"
    ),
    "rows run north": GeoBox(SHAPE, Affine(10, 0, 500_000, 0, 10, 5_800_000), "EPSG:32633"),
    "no crs": GeoBox(SHAPE, Affine(1, 0, 0, 0, -1, 700), None),
}


def marked(grid: GeoBox) -> NDArray[np.uint8]:
    """Class ids (1, y, x) with a square of each marker's class at its place in the CRS."""
    ids = np.full((1, *grid.shape), 1, np.uint8)
    rows, columns = grid.shape
    pixel = abs(grid.affine.determinant) ** 0.5
    x, y = grid.affine * (columns / 2, rows / 2)
    for code, (east, north) in MARKERS.items():
        column, row = ~grid.affine * (x + east * pixel, y + north * pixel)
        half = SQUARE // 2
        ids[0, round(row) - half : round(row) + half, round(column) - half : round(column) + half] = code
    return ids


def publish_page_map(
    folder: Path,
    grid: GeoBox,
    layers: Mapping[str, NDArray[Any]],
    *,
    tiles: Sequence[ListedTile] = (),
    block: int = 1024,
    sources: Sequence[str] = ("optical",),
    bands: int = 3,
) -> Path:
    """Publish the map of these codes (band, y, x) by product, with a page; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(1, 200, (bands, *grid.shape), np.uint8)
    profile = {"driver": "GTiff", "height": grid.shape[0], "width": grid.shape[1], "count": bands, "dtype": "uint8"}
    with rasterio.open(
        folder / "s.tif", "w", **profile, transform=grid.affine, crs=grid.crs and grid.crs.to_wkt()
    ) as target:
        target.write(values)
    store = build_small_store(folder, [Source(name, ((RasterFile(str(folder / "s.tif")),),)) for name in sources])
    products = tuple(product(name) for name in layers)  # type: ignore[arg-type]  # names of products
    work = MapStore.create(str(folder / "map.zarr"), store=store, products=products, tile=TILE)
    written = []
    for window in windows(store.shape, TILE):
        result = {name: codes[:, *window.slices] for name, codes in layers.items()}
        work.write(Tile("small", window), result)
        written.append(SourceTile(window, result_digest(result), published=False))
    published = folder / "map"
    source = MapSource(store.url, work.url, str(published), "", products, TILE, "declared")
    names = tuple(tuple(each.band_names(store.classes, sources)) for each in products)
    files = MapFiles(str(published), "", store.grid, products, names, CLASSES, tuple(sources), {})
    publication = Publication(source, files, block, written, {}, tile_list(tiles))
    damaged = publish_map(
        publication,
        ThreadExecutor(2),
        describe=lambda assets: _item(grid, assets),
        run="now",
        lease=Lease(),
        progress=_silent,
    )
    assert damaged == []
    return published


def _item(grid: GeoBox, assets: Sequence[Asset]) -> dict[str, Any]:
    return map_item(
        id="valley <i>",
        grid=grid,
        assets=assets,
        classes=CLASSES,
        created=datetime(2026, 11, 27, tzinfo=UTC),
        datetime=None,
        model=ModelLink("model.json", "ab" * 32, "main"),
        inputs={},
        ledger="./ledger",
        version="1",
        fingerprint="",
        run="now",
        facts={"content": "one", "tile": TILE, "missing": "declared", "pixels": grid.shape[0] * grid.shape[1]},
    )


@contextmanager
def _silent(_steps: int) -> Iterator[Any]:
    yield lambda count: None


def failed(window: Window, cause: str) -> ListedTile:
    """A tile that failed three times."""
    return ListedTile(window, "failed", 3, cause)
