"""Published class maps made of arrays, without a scene or a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from scipy.ndimage import gaussian_filter

from mibf import __version__
from mibf.bundle.classes import ClassName
from pipeline.codes import UNLABELLED
from pipeline.geotiff.cog import rasterio_window
from pipeline.grid import Window, windows
from pipeline.io import storage
from pipeline.maps.products import MapDtype, Product, product
from pipeline.publishing.published_map import ITEM
from pipeline.publishing.stac_item import Asset, ModelLink, map_item

#: Reads codes (height, width) of a window.
Codes = Callable[[Window], NDArray[Any]]
#: Side of the pattern of `patchwork`, and of its patches, in pixels; share of its pixels that have a random class.
PATTERN, PATCH, NOISE = 1024, 12, 0.02


def write_class_map(
    folder: Path,
    grid: GeoBox,
    classes: Sequence[ClassName],
    class_ids: Codes,
    confidence: Codes | None = None,
    *,
    dtype: MapDtype = "uint16",
    fingerprint: str = "0",
) -> str:
    """Write a map with the products `class` and, with `confidence`, that one; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    layers: list[tuple[Product, Codes]] = [(product("class"), class_ids)]
    if confidence is not None:
        layers.append((product("confidence", dtype), confidence))
    assets = []
    for layer, read in layers:
        path = folder / f"{layer.name}.tif"
        _write(path, grid, layer, read)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        assets.append(
            Asset(layer.name, path.name, size, digest, layer.dtype, layer.nodata, layer.scale, layer.unit, (layer.name,))
        )
    item = map_item(
        id=folder.name,
        grid=grid,
        assets=assets,
        classes=classes,
        created=datetime(2026, 1, 2, tzinfo=UTC),
        datetime=None,
        model=ModelLink("model.json", "0", "main"),
        inputs={},
        ledger="./ledger",
        version=__version__,
        fingerprint=fingerprint,
        run="main",
        facts={"tile": 512, "missing": "declared"},
    )
    storage.write_json(str(folder / ITEM), item)
    return str(folder)


def _write(path: Path, grid: GeoBox, layer: Product, read: Codes) -> None:
    rows, columns = grid.shape
    profile = {"driver": "GTiff", "height": rows, "width": columns, "count": 1, "dtype": layer.dtype, "nodata": layer.nodata}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "DEFLATE", "zlevel": 1}
    crs = None if grid.crs is None else grid.crs.to_wkt()
    with rasterio.open(path, "w", **profile, transform=grid.affine, crs=crs) as target:
        for window in windows((rows, columns), 512):
            target.write(read(window), 1, window=rasterio_window(window))
        if max(rows, columns) > 512:
            target.build_overviews([2], Resampling.nearest)


def patchwork(classes: int, *, seed: int = 0) -> Codes:
    """Class ids from 1 in patches of random shape, with noise, as those of a classified image; periodic."""
    random = np.random.default_rng(seed)
    fields = [gaussian_filter(random.standard_normal((PATTERN, PATTERN)), PATCH, mode="wrap") for _ in range(classes)]
    ids = (np.argmax(fields, axis=0) + 1).astype(np.uint8)
    noisy = random.random(ids.shape) < NOISE
    ids[noisy] = random.integers(1, classes + 1, int(noisy.sum()))
    clouds = gaussian_filter(random.standard_normal(ids.shape), PATCH, mode="wrap")
    ids[clouds > 2.5 * clouds.std()] = UNLABELLED
    return lambda window: _periodic(ids, window)


def random_codes(low: int, high: int, *, seed: int = 0) -> Codes:
    """Random codes from `low` to `high` in uint16; periodic."""
    codes = np.random.default_rng(seed).integers(low, high, (PATTERN, PATTERN), dtype=np.uint16)
    return lambda window: _periodic(codes, window)


def _periodic(pattern: NDArray[Any], window: Window) -> NDArray[Any]:
    rows = np.arange(window.y, window.y + window.height) % len(pattern)
    columns = np.arange(window.x, window.x + window.width) % pattern.shape[1]
    return np.asarray(pattern[rows][:, columns])
