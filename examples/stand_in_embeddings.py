"""Write a stand-in for AlphaEarth's embeddings, to try `decode: alphaearth` without a download.

It has their form (64 bands of int8, unit length, -128 for no data, the first row in the south) but not their content: its
values are random projections of the 12 bands of one Sentinel-2 image and of their means over 5 x 5 pixels.

    python examples/stand_in_embeddings.py data/terramind_282D_485L_3_3 work/embeddings/stand_in.tif
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from scipy.ndimage import uniform_filter

BANDS, SEED = 64, 0


def main(scene: str, target: str) -> None:
    """Read `s2_l2a.tif` of a TerraMesh scene and write the stand-in on its grid."""
    with rasterio.open(Path(scene) / "s2_l2a.tif") as dataset:
        image, transform, crs = dataset.read().astype(np.float64), dataset.transform, dataset.crs
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
