"""A raster of the transitions between two maps, as a cloud-optimised GeoTIFF."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray

from pipeline.codes import UNLABELLED
from pipeline.geotiff import cog
from pipeline.grid import Window
from pipeline.io import gdal, storage
from pipeline.io.retry import call_with_retry
from pipeline.publishing.class_map import ClassMap
from pipeline.transitions.count import Take

#: A pixel is FACTOR x (id in the first map) + (id in the second one), so that both can be read off the number: 3008.
FACTOR = 1000
#: The value where either map has no class; above all others.
NODATA = 999_999


@contextmanager
def transition_raster(first: ClassMap, second: ClassMap, url: str) -> Iterator[Take]:
    """Write the raster of the transitions between two maps to a URL; yields the function that takes the windows.

    An existing file is replaced when the block has ended without an exception.

    Raises:
        CogError: the CRS cannot be read back.
    """
    gdal.configure_gdal()
    rows, columns = first.shape
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "dtype": "uint32", "count": 1}
    options = {"compress": "DEFLATE", "zlevel": 1, "bigtiff": "IF_SAFER", "nodata": NODATA}
    crs = None if first.grid.crs is None else first.grid.crs.to_wkt()
    place = {"height": rows, "width": columns, "transform": first.grid.affine, "crs": crs}
    with TemporaryDirectory(prefix="mibf-") as folder:
        plain, path = Path(folder, "plain.tif"), Path(folder, url.rpartition("/")[2])
        with rasterio.open(plain, "w", **profile, **options, **place) as target:
            target.set_band_description(1, "transition")
            target.update_tags(1, **{f"from_{c.id}": c.name for c in first.classes})
            target.update_tags(1, **{f"to_{c.id}": c.name for c in second.classes})

            def take(window: Window, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> None:
                codes = before.astype(np.uint32) * FACTOR + after
                codes[(before == UNLABELLED) | (after == UNLABELLED)] = NODATA
                target.write(codes, 1, window=cog.rasterio_window(window))

            yield take
        layout = {"compress": "DEFLATE", "blocksize": 512, "bigtiff": "IF_SAFER", "overview_resampling": "MODE"}
        rasterio.shutil.copy(plain, path, driver="COG", **layout)
        for file in (*cog.write_sidecar(path, first.grid, ()), path):
            target_url = f"{url}.aux.xml" if file.name.endswith(".aux.xml") else url
            call_with_retry(target_url, lambda file=file, target_url=target_url: storage.publish(str(file), target_url))  # type: ignore[misc]  # bound now
