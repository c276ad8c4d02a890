"""Write a stand-in for AlphaEarth's embeddings, to try `decode: alphaearth` without a download.

It has their form (64 bands of int8, unit length, -128 for no data, the first row in the south) but not their content: its
values are random projections of the bands of one Sentinel-2 image and of their means over 5 x 5 pixels. Of a large image,
it covers the middle.

    python examples/stand_in_embeddings.py jobs/sample/B0[2348].jp2 work/sample_embeddings/stand_in.tif
    python examples/stand_in_embeddings.py data/terramind_282D_485L_3_3/s2_l2a.tif work/embeddings/stand_in.tif
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window
from scipy.ndimage import uniform_filter

BANDS, SEED = 64, 0
#: Side in pixels of the part of a large image that is covered.
LARGEST = 288


def main(*files: str) -> None:
    """Read the bands of rasters on one grid, and write the stand-in on it to the last of the files."""
    *images, target = files
    bands = []
    for name in images:
        with rasterio.open(name) as dataset:
            rows, columns = (min(size, LARGEST) for size in dataset.shape)
            window = Window((dataset.width - columns) // 2, (dataset.height - rows) // 2, columns, rows)
            bands.append(dataset.read(window=window).astype(np.float64))
            transform, crs = dataset.window_transform(window), dataset.crs
    image = np.concatenate(bands)
    image = (image - image.mean(axis=(1, 2), keepdims=True)) / image.std(axis=(1, 2), keepdims=True)
    features = np.concatenate([image, uniform_filter(image, size=(1, 5, 5))])
    weights = np.random.default_rng(SEED).normal(size=(BANDS, len(features))) / np.sqrt(len(features))
    values = np.tanh(np.tensordot(weights, features, 1))
    values /= np.linalg.norm(values, axis=0)
    stored = np.rint(np.sign(values) * np.sqrt(np.abs(values)) * 127.5).clip(-127, 127).astype(np.int8)
    rows, columns = stored.shape[1:]
    profile = {"driver": "GTiff", "count": BANDS, "height": rows, "width": columns, "dtype": "int8", "nodata": -128}
    from_south = transform * Affine.translation(0, rows) * Affine.scale(1, -1)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(target, "w", **profile, crs=crs, transform=from_south, compress="deflate", tiled=True) as dataset:
        dataset.write(stored[:, ::-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
