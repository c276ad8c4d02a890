"""GeoTIFFs built from arrays: encoded in parts and assembled, as those of a published map are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from pipeline.geotiff import cog
from pipeline.geotiff.encoded_tiles import EncodedPart, TileEncoder
from pipeline.geotiff.raster_file import RasterFile, assemble
from pipeline.geotiff.tile_codec import halve
from pipeline.geotiff.tile_pyramid import Codes, TileKey, TreeBuilder
from pipeline.grid import Window
from pipeline.maps.products import CLASS_PRODUCTS, Product


def encode_parts(
    raster: RasterFile,
    codes: NDArray[Any],
    folder: Path,
    *,
    level: int,
    changed: Collection[TileKey] | None = None,
    before: NDArray[Any] | None = None,
) -> list[EncodedPart]:
    """Encode the parts of a raster below the tiles of a level: those with changed tiles (default: all).

    `before` are the codes of the raster whose other tiles are kept.
    """
    tree, product = raster.tree, raster.product
    level = min(level, len(tree.shapes) - 1)
    finest = frozenset(tree.tiles(0) if changed is None else changed)
    parts = []
    for root in sorted({key.ancestor(level) for key in finest}):
        encoder = TileEncoder([product])
        keys = tree.with_ancestors(key for key in finest if key.ancestor(level) == root)

        def read(key: TileKey) -> Codes:
            return {product.name: codes[:, *tree.window(key).slices]}

        def kept(key: TileKey) -> Codes:
            assert before is not None, "all tiles are built"
            return {product.name: overview(before, product, key.level)[:, *tree.window(key).slices]}

        halved = TreeBuilder(tree, [product], keys, read, kept, encoder.emit, {}).build(root)
        parts.append(encoder.write(str(folder / f"{product.name}-{root.row}-{root.column}.tiles"), root, halved))
    return parts


def overview(codes: NDArray[Any], product: Product, level: int) -> NDArray[Any]:
    """The codes of an overview of a whole raster."""
    for _ in range(level):
        codes = halve(codes, product)
    return codes


def build_raster(
    folder: Path,
    product: Product,
    codes: NDArray[Any],
    *,
    block: int,
    grid: GeoBox,
    names: Sequence[str],
    classes: Sequence[ClassName],
    tags: Mapping[str, str],
    level: int = 3,
) -> Path:
    """Build all files of a product; return the file that covers the full grid."""
    rows, columns = codes.shape[1:]
    parts = cog.pieces(product.name, (rows, columns), block=block)
    for name, window in parts:
        raster = RasterFile(product, window, grid, tuple(names), tuple(classes), tags)
        encoded = encode_parts(raster, codes[:, *window.slices], folder, level=level)
        assemble(raster, 0, encoded, folder / name)
        for part in encoded:
            Path(part.url).unlink()
        cog.write_sidecar(folder / name, grid, classes if product.name in CLASS_PRODUCTS else ())
    if len(parts) == 1:
        return folder / parts[0][0]
    path = folder / f"{product.name}.vrt"
    path.write_text(cog.vrt(parts, product, grid=grid, names=names, classes=classes, tags=tags), "utf-8")
    return path


def whole(codes: NDArray[Any]) -> Window:
    """The window of an entire raster."""
    return Window(0, 0, *codes.shape[1:])
