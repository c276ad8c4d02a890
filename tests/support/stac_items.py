"""STAC items of several days with two bands and clouds, with their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from tests.support.scenes import write_raster

ROWS, COLUMNS = 40, 48
GRID = GeoBox((ROWS, COLUMNS), Affine(10, 0, 499_800, 0, -10, 4_000_400), "EPSG:32612")
CLEAR, CLOUD = 4, 9


def write_items(folder: Path, days: list[str], *, seed: int = 0, dtype: str = "uint16") -> Path:
    """Write an item for each day, or part of a day, with two bands and a scene classification with clouds."""
    drawn, features = np.random.default_rng(seed), []
    for number, day in enumerate(days):
        # Items of one day are two halves of an image.
        neighbours = [n for n, other in enumerate(days) if other[:10] == day[:10]]
        left = 0 if len(neighbours) == 1 else neighbours.index(number) * COLUMNS // 2
        width = COLUMNS if len(neighbours) == 1 else COLUMNS // 2
        place = GRID.affine * Affine.translation(left, 0)
        clouds = np.where(drawn.random((ROWS, width)) < 0.05, CLOUD, CLEAR).astype(np.uint8)
        values = drawn.integers(1, 3000, (2, ROWS, width)).astype(dtype)
        assets = {}
        for name, own in (("red", values[:1]), ("nir", values[1:]), ("scl", clouds[None])):
            write_raster(folder / f"{number}_{name}.tif", own, transform=place, crs="EPSG:32612")
            assets[name] = {"href": f"{number}_{name}.tif"}
        features.append(
            {
                "type": "Feature", "stac_version": "1.0.0", "id": f"item{number}", "geometry": None, "links": [],
                "properties": {"datetime": day}, "assets": assets,
            }
        )  # fmt: skip
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


DAYS = [
    "2024-06-01T18:00:00Z",
    "2024-06-11T18:00:00Z",
    "2024-06-11T18:00:20Z",
    "2024-06-21T18:00:00Z",
    "2024-07-01T18:00:00Z",
]
MASK = {"asset": "scl", "invalid": [CLOUD], "dilate": 2}


def write_found_items(folder: Path, days: list[str]) -> list[dict[str, Any]]:
    """Write items as `write_items`, and return them as an API does: with a collection, a footprint and absolute names."""
    features: list[dict[str, Any]] = json.loads(write_items(folder, days).read_text())["features"]
    footprint = GRID.geographic_extent.geom
    for feature in features:
        feature |= {"collection": "s2", "bbox": list(footprint.bounds), "geometry": shapely.geometry.mapping(footprint)}
        for asset in feature["assets"].values():
            asset["href"] = str(folder / asset["href"])
    return features
