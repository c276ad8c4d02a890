"""Encode internal tiles of GeoTIFFs and halve their resolution, with GDAL in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import MemoryFile

from pipeline.maps.products import Product

#: Side of a file's internal tiles, in pixels.
TILE = 512


class CogError(RuntimeError):
    """A written file is not a valid cloud-optimised GeoTIFF, or its pixels differ from those written."""


def encode_tile(codes: NDArray[Any], product: Product) -> list[bytes]:
    """Encode one tile of a product: a Deflate stream per band, as GDAL writes it into a GeoTIFF.

    Args:
        codes: the tile's codes (band, y, x), at most `TILE` x `TILE`; smaller tiles, at the far edges, are padded by GDAL.
        product: the product, which decides on type, nodata value and predictor.

    Raises:
        CogError: the pixels read back differ from those written, because GDAL does not raise an error for every failure.
    """
    with rasterio.Env(GDAL_NUM_THREADS=1), MemoryFile() as file:
        with file.open(**tile_profile(codes, product, compress="deflate", predictor=product.predictor)) as dataset:
            dataset.write(codes)
        with file.open() as dataset:
            bands = range(1, dataset.count + 1)
            offsets, sizes = (
                [int(dataset.get_tag_item(f"{name}_0_0", "TIFF", bidx=band)) for band in bands]
                for name in ("BLOCK_OFFSET", "BLOCK_SIZE")
            )
            if not np.array_equal(dataset.read(), codes, equal_nan=codes.dtype.kind == "f"):
                raise CogError(f"{product.name}: pixels read back differ from those written")
        content = file.getbuffer()
        return [bytes(content[offset : offset + size]) for offset, size in zip(offsets, sizes, strict=True)]


def halve(codes: NDArray[Any], product: Product) -> NDArray[Any]:
    """Resample codes (band, y, x) to half their resolution, by the product's method: one pixel for each 2 x 2.

    An odd last row or column is repeated, so that the pixels of a raster's overviews depend on the 2 x 2 pixels below them
    alone, and any part of a raster has the overviews of the whole.
    """
    _, rows, columns = codes.shape
    even = np.pad(codes, ((0, 0), (0, rows % 2), (0, columns % 2)), mode="edge")
    with rasterio.Env(GDAL_NUM_THREADS=1), MemoryFile() as file:
        with file.open(**tile_profile(even, product)) as dataset:
            dataset.write(even)
            dataset.build_overviews([2], Resampling[product.overviews])
        with file.open(overview_level=0) as dataset:
            return np.asarray(dataset.read())


def tile_profile(codes: NDArray[Any], product: Product, **options: Any) -> dict[str, Any]:
    """Rasterio's profile of a GeoTIFF with these codes, tiled and with separate bands."""
    bands, rows, columns = codes.shape
    return {
        "driver": "GTiff",
        "height": rows,
        "width": columns,
        "count": bands,
        "dtype": product.dtype,
        "nodata": product.nodata,
        "tiled": True,
        "interleave": "band",
        "blockxsize": TILE,
        "blockysize": TILE,
        "transform": rasterio.Affine(1, 0, 0.5, 0, -1, 0),  # any: without one, rasterio warns
        **options,
    }
