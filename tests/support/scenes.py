"""Small synthetic scenes for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
import yaml
from affine import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject

ROWS, COLUMNS = 150, 130
CRS = "EPSG:32633"
TRANSFORM = Affine(10.0, 0.0, 400000.0, 0.0, -10.0, 5800000.0)
CLASSES = [{"id": 1, "name": "water"}, {"id": 2, "name": "forest"}, {"id": 5, "name": "town"}]


def write_raster(
    path: Path, values: np.ndarray, *, transform: Affine = TRANSFORM, crs: str | None = CRS, nodata: Any = None
) -> Path:
    """Write a (band, y, x) array as a GeoTIFF."""
    bands, rows, columns = values.shape
    profile = {"driver": "GTiff", "count": bands, "height": rows, "width": columns, "dtype": values.dtype.name}
    with rasterio.open(path, "w", **profile, transform=transform, crs=crs, nodata=nodata) as dataset:
        dataset.write(values)
    return path


@dataclass(frozen=True)
class SmallScene:
    """The files of a scene with three classes: forest differs only in the optical source, town only in the radar source."""

    folder: Path
    truth: np.ndarray
    optical: np.ndarray

    def config(self, **changes: Any) -> dict[str, Any]:
        """Return a configuration of the scene that trains in seconds; `changes` replace top-level keys.

        The recipe is `standard` unless `train` names another one: `auto` would run trials first.
        """
        values = {
            "name": "small",
            "workspace": str(self.folder / "work"),
            "scenes": [
                {
                    "name": "small",
                    "grid": {"like": "optical"},
                    "sources": {
                        "optical": {"url": str(self.folder / "optical.tif")},
                        "radar": {"url": str(self.folder / "radar.tif"), "missing": "fill"},
                    },
                    "labels": {"url": str(self.folder / "labels.tif"), "ignore": [0]},
                }
            ],
            "classes": CLASSES,
            "split": {"block": 20, "fractions": {"train": 0.5, "validation": 0.2, "test": 0.3}},
            "model": {"patch": 5},
            "train": {"epochs": 2, "batch_size": 64, "learning_rate": 3e-3, "workers": 1},
            "baselines": {"enabled": False},
            "map": {"tile_size": 64, "workers": 1},
        } | changes
        if isinstance(values["train"], dict):
            values["train"] = {"recipe": "standard"} | values["train"]
        return values

    def write_config(self, **changes: Any) -> Path:
        """Write `config(**changes)` as a YAML file and return its path."""
        path = self.folder / "small.yaml"
        path.write_text(yaml.safe_dump(self.config(**changes), sort_keys=False))
        return path


def make_scene(folder: Path) -> SmallScene:
    """Write a small scene: optical and labels on the same grid, radar in EPSG:4326, sparse labels."""
    generator = np.random.default_rng(7)
    coarse = generator.integers(0, 3, (ROWS // 10, COLUMNS // 10))
    truth = np.array([1, 2, 5], np.uint8)[np.kron(coarse, np.ones((10, 10), int))]
    optical = generator.normal(0, 60, (3, ROWS, COLUMNS)) + 1000 + 500 * (truth == 2)
    optical = optical.astype(np.uint16)
    optical[:, :4, :6] = 0  # no data in one corner
    write_raster(folder / "optical.tif", optical, nodata=0)
    radar = (generator.normal(0, 0.1, (1, ROWS, COLUMNS)) + (truth == 5)).astype(np.float32)
    _write_in_degrees(folder / "radar.tif", radar)
    labels = np.where(generator.random((ROWS, COLUMNS)) < 0.6, truth, 0)[None].astype(np.uint8)
    write_raster(folder / "labels.tif", labels)
    return SmallScene(folder, truth, optical)


def make_large_scene(folder: Path) -> SmallScene:
    """Write a scene of 600 x 500 pixels: 5 x 4 shards of 128 pixels; the last row and column are smaller."""
    scene = make_scene(folder)
    generator = np.random.default_rng(0)
    values = generator.integers(1, 9999, (3, 600, 500)).astype(np.uint16)
    write_raster(folder / "optical.tif", values)
    write_raster(folder / "radar.tif", values[:1].astype(np.float32) / 3)
    labels = generator.choice(np.array([1, 2, 5], np.uint8), (30, 25)).repeat(20, 0).repeat(20, 1)
    write_raster(folder / "labels.tif", labels[None])
    return scene


def _write_in_degrees(path: Path, values: np.ndarray) -> None:
    bounds = rasterio.transform.array_bounds(ROWS, COLUMNS, TRANSFORM)
    transform, columns, rows = calculate_default_transform(CRS, "EPSG:4326", COLUMNS, ROWS, *bounds)
    target = np.full((1, rows, columns), np.nan, np.float32)
    reproject(
        values,
        target,
        src_transform=TRANSFORM,
        src_crs=CRS,
        dst_transform=transform,
        dst_crs="EPSG:4326",
        resampling=Resampling.bilinear,
        dst_nodata=np.nan,
    )
    write_raster(path, target, transform=transform, crs="EPSG:4326", nodata=np.nan)


def write_polygons(path: Path, rows: list[tuple[shapely.Polygon, Any]], *, crs: str | None = CRS) -> Path:
    """Write polygons with an attribute `kind` to a GeoPackage."""
    geometries, kinds = zip(*rows, strict=True)
    geopandas.GeoDataFrame({"kind": list(kinds)}, geometry=list(geometries), crs=crs).to_file(path)
    return path
