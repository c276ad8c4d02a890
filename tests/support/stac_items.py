"""STAC items of several days with two bands and clouds, with their files; and what they hold, read by rasterio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import distance_transform_edt

from jobs.config.resolve import sources
from jobs.config.scene import SceneSection
from pipeline.scenes.geometries import AreaMask
from pipeline.scenes.source import AlignedSource, open_source
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
        )  # fmt: skip  # values in rows that belong together
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


def write_found_items(folder: Path, days: list[str], base: str | None = None) -> list[dict[str, Any]]:
    """Write items as `write_items`, and return them as an API does: with a collection, a footprint and absolute names.

    `base` is the address at which the folder is served; by default names are paths.
    """
    features: list[dict[str, Any]] = json.loads(write_items(folder, days).read_text())["features"]
    footprint = GRID.geographic_extent.geom
    for feature in features:
        feature |= {"collection": "s2", "bbox": list(footprint.bounds), "geometry": shapely.geometry.mapping(footprint)}
        for asset in feature["assets"].values():
            asset["href"] = f"{base or folder}/{asset['href']}"
    return features


def opened(
    path: Path, *, grid: GeoBox = GRID, scale: int = 1, crs: str | None = None, area: AreaMask | None = None, **changes: Any
) -> AlignedSource:
    """Open the two bands of the items as a source; `changes` are keys of its section `stac`."""
    section = {"stac": {"url": str(path), "assets": ["red", "nir"]} | changes, "scale": scale, "crs": crs}
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "optical"}, "sources": {"optical": section}})
    return open_source(sources(scene)["optical"], grid, area=area)


def observed(path: Path, *, dilate: int) -> tuple[np.ndarray, np.ndarray]:
    """What rasterio reads: values (D, B, y, x) of each day on the grid, and where (D, y, x) they are clear."""
    by_day: dict[str, list[dict[str, Any]]] = {}
    for feature in json.loads(path.read_text())["features"]:
        by_day.setdefault(feature["properties"]["datetime"][:10], []).append(feature)
    values = np.zeros((len(by_day), 2, ROWS, COLUMNS), np.float32)
    clear = np.zeros((len(by_day), ROWS, COLUMNS), bool)
    for position, day in enumerate(sorted(by_day)):
        for feature in by_day[day]:
            for name in ("red", "nir", "scl"):
                with rasterio.open(path.parent / feature["assets"][name]["href"]) as dataset:
                    own, left = dataset.read(1), round((dataset.transform.c - GRID.affine.c) / 10)
                where = np.s_[:, left : left + own.shape[1]]
                if name == "scl":
                    cloudy = own == CLOUD
                    clear[position][where] = distance_transform_edt(~cloudy) > dilate if cloudy.any() else True
                else:
                    values[position, ("red", "nir").index(name)][where] = own
    return values, clear
