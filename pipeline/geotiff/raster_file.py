"""Assemble the GeoTIFF of a product from encoded tiles: those that were built, and those kept of the published file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.io import MemoryFile
from rio_cogeo.cogeo import cog_validate

from mibf.bundle.classes import ClassName
from pipeline.geotiff import tiff_header
from pipeline.geotiff.cog import color_table, rasterio_window
from pipeline.geotiff.encoded_tiles import EncodedPart, TileEncoder, read_range
from pipeline.geotiff.tiff_header import LEADER, TRAILER
from pipeline.geotiff.tile_codec import CogError, tile_profile
from pipeline.geotiff.tile_pyramid import Codes, TileKey, TileTree, TreeBuilder
from pipeline.grid import Window
from pipeline.maps.products import CLASS_PRODUCTS, Product

#: Bytes read at a time from one object.
_RUN_BYTES = 32 * 2**20


@dataclass(frozen=True)
class RasterFile:
    """One GeoTIFF of a map: a window of a product."""

    product: Product
    window: Window  #: the part of the grid that it covers
    grid: GeoBox  #: of the entire map
    names: tuple[str, ...]  #: of the bands
    classes: tuple[ClassName, ...]  #: colours and names of class ids
    tags: Mapping[str, str]  #: provenance

    @property
    def tree(self) -> TileTree:
        """Its tiles."""
        return TileTree((self.window.height, self.window.width))

    def template(self) -> list[tiff_header.Directory]:
        """The directories of the full resolution and of an overview, as GDAL writes them for a file of 2 x 2 pixels."""
        product, grid = self.product, self.grid
        codes = np.zeros((len(self.names), 2, 2), product.dtype)
        profile = tile_profile(codes, product, compress="deflate", predictor=product.predictor) | {
            "transform": grid.affine * Affine.translation(self.window.x, self.window.y),
            "crs": None if grid.crs is None else grid.crs.to_wkt(),
            "sparse_ok": True,
        }
        with MemoryFile() as file:
            with file.open(**profile) as target:
                target.update_tags(**self.tags)
                target.scales, target.offsets = [product.scale] * len(self.names), [0.0] * len(self.names)
                target.units = [product.unit] * len(self.names)
                for band, name in enumerate(self.names, start=1):
                    target.set_band_description(band, name)
                if product.name in CLASS_PRODUCTS:
                    target.write_colormap(1, color_table(self.classes))
                    target.update_tags(1, **{f"class_{c.id}": c.name for c in self.classes})
                target.build_overviews([2])
            return tiff_header.read_directories(file)

    def is_described_by(self, file: BinaryIO) -> bool:
        """Whether an existing file has the same size, tags and kind of tiles, so that its tiles can be kept."""
        try:
            directories = tiff_header.read_directories(file)
            shapes = [tiff_header.tiles_of(directory, len(self.names))[0] for directory in directories]
        except (ValueError, KeyError):
            return False
        return shapes == self.tree.shapes and tiff_header.same_description(directories, self.template())


@dataclass(frozen=True)
class _Level:
    """Where the encoded tiles of a level are: a source each, and an offset and a size for each band, (R, C, B)."""

    source: NDArray[np.int64]  #: (R, C), index of the source; -1 where no tile is known yet
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


def assemble(
    raster: RasterFile, number: int, parts: Sequence[EncodedPart], path: Path, *, published: Path | None = None
) -> None:
    """Write a file from encoded tiles; the overviews above the parts' coarsest tiles are built here.

    Args:
        raster: the file.
        number: index of its product among those of the parts.
        parts: the tiles that were built.
        path: path of the file.
        published: the file that has the other tiles.

    Raises:
        CogError: the file is not a valid cloud-optimised GeoTIFF.
    """
    tree, product = raster.tree, raster.product
    old = None if published is None else _PublishedTiles(published, raster)
    upper = TileEncoder([product])
    _build_upper(raster, number, parts, upper, old)
    levels = _levels(raster, number, parts, upper, old)
    header, offsets = tiff_header.make_header(raster.template(), tree.shapes, [level.sizes for level in levels])
    memory = b"".join(band for key in sorted(upper.tiles) for band in upper.tiles[key][0])
    with path.open("wb") as target:
        target.write(header)
        for level in reversed(levels):
            for sources, places, sizes in zip(level.source, level.offsets, level.sizes, strict=True):
                _copy_row(target, sources, places, sizes, [part.url for part in parts], memory, published)
    _check(path, raster, offsets)


def _build_upper(
    raster: RasterFile, number: int, parts: Sequence[EncodedPart], upper: TileEncoder, old: _PublishedTiles | None
) -> None:
    tree, product = raster.tree, raster.product
    top = TileKey(len(tree.shapes) - 1, 0, 0)
    built: dict[TileKey, Codes] = {part.root: {product.name: part.halved(number, product)} for part in parts}
    if top in built or not parts:
        return

    def kept(key: TileKey) -> Codes:
        if old is None:
            raise CogError(f"{product.name}: tile {key} was not built")
        return {product.name: old.codes(key)}

    changed = tree.with_ancestors(built)
    TreeBuilder(tree, [product], changed, kept, kept, upper.emit, built).build(top)


def _levels(
    raster: RasterFile, number: int, parts: Sequence[EncodedPart], upper: TileEncoder, old: _PublishedTiles | None
) -> list[_Level]:
    """Find every tile of a file: source 0 is the published file, 1 the memory, the others are the parts."""
    tree, bands = raster.tree, len(raster.names)
    levels = []
    for level in range(len(tree.shapes)):
        shape = tree.tile_counts(level)
        if old is None:
            none = np.zeros((*shape, bands), np.int64)
            levels.append(_Level(np.full(shape, -1), none, none.copy()))
        else:
            levels.append(_Level(np.zeros(shape, np.int64), **old.places(level)))
    sizes = [[len(band) for band in upper.tiles[key][0]] for key in sorted(upper.tiles)]
    ends = np.cumsum(np.array(sizes, np.int64).reshape(-1, bands).ravel()).reshape(-1, bands)
    for key, size, end in zip(sorted(upper.tiles), sizes, ends, strict=True):
        _place(levels, key, 1, end - size, np.array(size))
    for source, part in enumerate(parts, start=2):
        tiles = part.products[number]
        for key, offset, found_sizes in zip(part.keys, tiles.offsets, tiles.sizes, strict=True):
            _place(levels, key, source, offset, found_sizes)
    for height, found in enumerate(levels):
        if (found.source < 0).any():
            raise CogError(f"{raster.product.name}: tiles of level {height} were not built")
    return levels


def _place(levels: Sequence[_Level], key: TileKey, source: int, offsets: NDArray[Any], sizes: NDArray[Any]) -> None:
    level = levels[key.level]
    level.source[key.row, key.column] = source
    level.offsets[key.row, key.column] = offsets
    level.sizes[key.row, key.column] = sizes


def _copy_row(
    target: BinaryIO,
    sources: NDArray[Any],
    offsets: NDArray[Any],
    sizes: NDArray[Any],
    urls: Sequence[str],
    memory: bytes,
    published: Path | None,
) -> None:
    """Copy a row of tiles, each between its size and its last bytes again."""
    for source, first, last in _runs(sources, offsets, sizes):
        start = int(offsets[first, 0])
        end = int(offsets[last, -1] + sizes[last, -1])
        if source == 0:
            assert published is not None
            with published.open("rb") as file:
                file.seek(start)
                content = file.read(end - start)
        else:
            content = memory[start:end] if source == 1 else read_range(urls[source - 2], start, end - start)
        for offset, size in zip(
            offsets[first : last + 1].ravel().tolist(), sizes[first : last + 1].ravel().tolist(), strict=True
        ):
            tile = content[offset - start : offset - start + size]
            target.write(b"".join((size.to_bytes(LEADER, "little"), tile, tile[-TRAILER:])))


def _runs(sources: NDArray[Any], offsets: NDArray[Any], sizes: NDArray[Any]) -> Iterator[tuple[int, int, int]]:
    """Divide a row of tiles into runs that are read at once: source, first and last tile."""
    first = 0
    for last in range(len(sources)):
        following = last + 1
        ends = following == len(sources) or sources[following] != sources[first]
        if not ends:
            gap = int(offsets[following, 0] - (offsets[last, -1] + sizes[last, -1]))
            length = int(offsets[following, -1] + sizes[following, -1] - offsets[first, 0])
            ends = not 0 <= gap <= LEADER + TRAILER or length > _RUN_BYTES
        if ends:
            yield int(sources[first]), first, last
            first = following


def _check(path: Path, raster: RasterFile, offsets: Sequence[NDArray[np.int64]]) -> None:
    """Check a file's structure, and that GDAL finds and decodes the last tile of each level."""
    _, errors, _ = cog_validate(path, strict=True, quiet=True)
    # The factors of overviews are guessed from their widths, wrongly where a raster is a few pixels wide: see below.
    errors = [error for error in errors if not error.startswith(("Invalid Decimation", "Overviews should be sorted"))]
    if errors:
        raise CogError(f"{path}: not a valid cloud-optimised GeoTIFF: {'; '.join(errors)}")
    for level, places in enumerate(offsets):
        row, column = places.shape[0] - 1, places.shape[1] - 1
        with rasterio.open(path, **({"overview_level": level - 1} if level else {})) as dataset:
            found = dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=dataset.count)
            if dataset.shape != raster.tree.shapes[level] or int(found or 0) != places[row, column, -1]:
                raise CogError(f"{path}: GDAL does not find the tiles of level {level} where they were written")
            dataset.read(window=rasterio_window(raster.tree.window(TileKey(level, row, column))))


class _PublishedTiles:
    """The tiles of a published file, on a local disk."""

    def __init__(self, path: Path, raster: RasterFile) -> None:
        self.path, self.tree, self.bands = path, raster.tree, len(raster.names)
        with path.open("rb") as file:
            self._directories = tiff_header.read_directories(file)

    def places(self, level: int) -> dict[str, NDArray[np.int64]]:
        """Offsets and sizes of the tiles of a level, (R, C, B)."""
        _, offsets, sizes = tiff_header.tiles_of(self._directories[level], self.bands)
        return {"offsets": offsets.copy(), "sizes": sizes.copy()}

    def codes(self, key: TileKey) -> NDArray[Any]:
        """The codes of a tile, (band, y, x)."""
        with rasterio.open(self.path, **({"overview_level": key.level - 1} if key.level else {})) as dataset:
            return np.asarray(dataset.read(window=rasterio_window(self.tree.window(key))))
