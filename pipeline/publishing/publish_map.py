"""Publish a finished map: its rasters, then the quicklook, then the STAC item that makes it a published map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mibf.bundle.classes import ClassName
from pipeline.io import checksums, storage
from pipeline.io.lease import Lease
from pipeline.maps.map_store import MapStore, check_coverage
from pipeline.maps.predictor import MissingDataPolicy
from pipeline.maps.products import CLASS_PRODUCTS, Product
from pipeline.publishing import cog
from pipeline.publishing.publish import ITEM, PublishedFile, publish
from pipeline.publishing.quicklook import quicklook
from pipeline.publishing.stac_item import Asset, check_item
from pipeline.store.patch_store import PatchStore

#: File name of the quicklook, next to the map.
QUICKLOOK = "quicklook.png"


def publish_map(
    work: MapStore,
    *,
    store: PatchStore,
    products: Sequence[Product],
    folder: str,
    classes: Sequence[ClassName],
    tags: dict[str, str],
    tile_size: int,
    block: int,
    missing: MissingDataPolicy,
    describe: Callable[[Sequence[Asset]], dict[str, Any]],
    run: str,
    lease: Lease,
    each: Callable[[str], object],
) -> None:
    """Publish the map in a map store, its item last.

    Args:
        work: the map store, with all tiles done.
        store: the scene's patch store.
        products: the products to publish.
        folder: URL of the map's folder.
        classes: names and colors of the classes.
        tags: written into every raster. They must not depend on tiles or workers, so that files are the same bytes
            however they were made; the item records the rest.
        tile_size: side of the tiles in pixels.
        block: side of a file in pixels (see `cog.block_side`).
        missing: which pixels were to be mapped.
        describe: makes the STAC item from the map's assets.
        run: id of the run.
        lease: checked before each step that cannot be undone.
        each: called with the name of each file that was built.

    Raises:
        IncompleteMapError: pixels are missing.
        InvalidItemError: the item is not valid STAC.
        LeaseLostError: the workspace lease was lost.
        PublishError, CogError: as for `publish`.
    """
    check_coverage(work, store, products, tile=tile_size, missing=missing)
    published = publish(
        partial(_reader, work),
        products,
        folder,
        grid=store.grid,
        classes=classes,
        band_names=work.band_names,
        tags=tags,
        block=block,
        run=run,
        lease=lease,
        each=each,
    )
    item = describe([*(_asset(file, work) for file in published), *_draw_quicklook(folder, published, classes, lease)])
    check_item(item)
    lease.check()
    storage.write_json(storage.join(folder, ITEM), item)


def file_count(products: Sequence[Product], shape_yx: tuple[int, int], block: int) -> int:
    """Number of files that `publish_map` builds: one per block of each product, and a VRT if there are several blocks."""
    blocks = len(cog.pieces("", shape_yx, block=block))
    return len(products) * (blocks + (blocks > 1))


def _reader(work: MapStore, product: Product) -> cog.TileReader:
    """Read a product's codes from the map store."""
    array = work.array(product)
    return lambda window: np.asarray(array[:, *window.slices])


def _asset(file: PublishedFile, work: MapStore) -> Asset:
    product = file.product
    names = work.sources if product.name == "sources" else work.band_names(product)
    return Asset(
        product=product.name,
        name=file.name,
        bytes=file.bytes,
        sha256=file.sha256,
        dtype=product.dtype,
        nodata=product.nodata,
        scale=product.scale,
        unit=product.unit,
        bands=tuple(names),
        window=file.window,
    )


def _draw_quicklook(
    folder: str, published: Sequence[PublishedFile], classes: Sequence[ClassName], lease: Lease
) -> list[Asset]:
    """Draw the quicklook next to the map; without a product of classes, remove that of an earlier map instead."""
    url = storage.join(folder, QUICKLOOK)
    class_files = [file for file in published if file.product.name in CLASS_PRODUCTS]
    if not class_files:
        lease.check()
        storage.remove(url)
        return []
    mosaic = [file for file in class_files if file.product.name == class_files[0].product.name][-1]
    picture = quicklook(mosaic.url, classes)
    lease.check()
    storage.write_bytes(url, picture)
    size, sha256 = checksums.sha256(url)
    return [Asset("quicklook", QUICKLOOK, size, sha256, "uint8", None, 1.0, "", ())]
