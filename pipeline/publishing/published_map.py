"""Read the pixels of a published map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.geotiff.cog import rasterio_window
from pipeline.grid import Window
from pipeline.io import gdal, storage
from pipeline.io.retry import call_with_retry
from pipeline.maps.products import Product
from pipeline.rasters.untrusted import open_published

#: File names of a map's item, without which it is not published, and of its quicklook.
ITEM, QUICKLOOK = "item.json", "quicklook.png"


def file_urls(folder: str, item: Mapping[str, Any], *, role: str | None = None) -> list[str]:
    """URLs of the files of the map in a folder, or of those with a role: pixels are in files of the role `data`."""
    files = [asset for asset in item.get("assets", {}).values() if "file:size" in asset]
    hrefs = [str(file["href"]) for file in files if role is None or role in file.get("roles", [])]
    return [storage.join(folder, href.removeprefix("./")) for href in hrefs]


def files_exist(folder: str, item: Mapping[str, Any], *, role: str | None = None) -> bool:
    """Whether all of these files exist: one listing, as a map has a dozen files and a fleet many maps."""
    wanted = {url.rpartition("/")[2] for url in file_urls(folder, item, role=role)}
    return wanted <= set(call_with_retry(folder, lambda: storage.names(folder)))


class PublishedMap:
    """Reader of the map published in a folder (URL). Not thread-safe."""

    def __init__(self, folder: str) -> None:
        gdal.configure_gdal()
        self.folder = folder
        self._urls: dict[str, str] = {}

    def read(self, product: Product, window: Window, *, shape_yx: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read the codes of a product in a window of the grid, (band, height, width); decimated to `shape_yx` if given.

        Raises:
            InputError: the map does not have the product, or has it with another pixel type.
        """
        url = self._raster_url(product)
        # Without this option GDAL could return cached content of an earlier map's files of the same names.
        with rasterio.Env(CPL_VSIL_CURL_NON_CACHED=gdal.gdal_path(self.folder)), open_published(url) as dataset:
            self._check_dtype(product, dataset.dtypes)
            shape = None if shape_yx is None else (dataset.count, *shape_yx)
            return np.asarray(dataset.read(window=rasterio_window(window), out_shape=shape))

    def pixels(self, product: Product, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
        """Read the codes of a product of one band at single pixels (n,), the file being opened once.

        Raises:
            InputError: as for `read`.
        """
        found = np.zeros(len(rows), product.dtype)
        url = self._raster_url(product)
        with rasterio.Env(CPL_VSIL_CURL_NON_CACHED=gdal.gdal_path(self.folder)), open_published(url) as dataset:
            self._check_dtype(product, dataset.dtypes)
            for position in np.lexsort((columns, rows)):  # neighbors one after the other, from GDAL's cache
                window = Window(int(rows[position]), int(columns[position]), 1, 1)
                found[position] = dataset.read(1, window=rasterio_window(window))[0, 0]
        return found

    def _check_dtype(self, product: Product, dtypes: Sequence[str]) -> None:
        if set(dtypes) != {product.dtype}:
            raise InputError(
                f"{storage.redact_url(self.folder)}: {product.name} is stored as {dtypes[0]}, "
                f"not as {product.dtype}; run `mibf map` again."
            )

    def _raster_url(self, product: Product) -> str:
        """The URL of a product's raster: its GeoTIFF, or the VRT over several."""
        if product.name not in self._urls:
            urls = [storage.join(self.folder, f"{product.name}.{suffix}") for suffix in ("tif", "vrt")]
            found = next((url for url in urls if storage.exists(url)), None)
            if found is None:
                raise InputError(
                    f"{storage.redact_url(self.folder)}: no published {product.name} raster found; run `mibf map` first."
                )
            self._urls[product.name] = found
        return self._urls[product.name]
